from sda_features.recommenders.bert4rec import BERT4Rec
from tests.contracts.recommender import RecommenderContract


class TestContract(RecommenderContract):
    recommender = BERT4Rec
