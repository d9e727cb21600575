"""Files as accidents, or people who mean harm, leave them."""

import json

GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def damage(path, how):
    """Bytes take the place of a file, a dict changes its JSON object, None removes it, a function does what it does."""
    if how is None:
        path.unlink()
    elif isinstance(how, bytes):
        path.write_bytes(how)
    elif isinstance(how, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | how))
    else:
        how(path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, place=1):
    """One bit is another; `place` 0 is in the first byte, 1 in the last."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_link(path, to):
    path.unlink()
    path.symlink_to(to)


def without(path, name):
    """A JSON object lacks a field."""
    content = json.loads(path.read_text())
    content.pop(name, None)
    path.write_text(json.dumps(content))
