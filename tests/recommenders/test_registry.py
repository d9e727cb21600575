from importlib.metadata import EntryPoint

import pytest

from sda_features.errors import SettingsError
from sda_features.recommenders import registry
from sda_features.recommenders.base import Recommender
from sda_features.recommenders.registry import OWN, find_class, find_recommender
from sda_features.recommenders.sasrec import SASRec


def test_own_recommenders_are_found_by_name():
    for name in OWN:
        found = find_recommender(name)
        assert issubclass(found, Recommender)
        assert found.__name__.lower() == name


def test_installed_packages_add_recommenders_and_cannot_take_our_names(monkeypatch):
    points = [
        EntryPoint("mine", "sda_features.recommenders.sasrec:SASRec", registry.GROUP),
        EntryPoint("sasrec", "sda_features.recommenders.sasrec:Block", registry.GROUP),
        EntryPoint("torn", "sda_features.recommenders.sasrec:Gone", registry.GROUP),
        EntryPoint("block", "sda_features.recommenders.sasrec:Block", registry.GROUP),
        EntryPoint("base", "sda_features.recommenders.base:SequenceRecommender", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else [])
    assert find_recommender("mine") is find_recommender("sasrec") is SASRec
    with pytest.raises(SettingsError, match=r"'torn' \(.*:Gone\) cannot be loaded: .*'Gone'"):
        find_recommender("torn")
    for name in ("block", "base"):
        with pytest.raises(SettingsError, match=rf"{name!r} .* is not a complete subclass of Recommender"):
            find_recommender(name)


def test_a_class_is_found_by_its_name_and_ours_first(monkeypatch):
    points = [
        EntryPoint("impostor", "nowhere:SASRec", registry.GROUP),
        EntryPoint("mine", "sda_features.recommenders.vbpr:VBPR", registry.GROUP),
        EntryPoint("torn", "nowhere:Torn", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    assert find_class("SASRec") is SASRec
    assert find_class("Nobody") is None
    with pytest.raises(SettingsError, match=r"'torn' \(nowhere:Torn\) cannot be loaded"):
        find_class("Torn")


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(SettingsError, match="No recommender 'gru'; there are sasrec, bert4rec, vbpr, slmrec"):
        find_recommender("gru")
