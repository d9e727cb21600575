from sda_features.recommenders.vbpr import VBPR
from tests.contracts.recommender import RecommenderContract


class TestContract(RecommenderContract):
    recommender = VBPR
