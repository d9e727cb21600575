"""A team's items: rows, their pictures, the prompts made of them."""
