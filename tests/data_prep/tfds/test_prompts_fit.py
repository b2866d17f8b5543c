"""The shipped prompts name the very classes that the builders store, or that a scheme labels by."""

import pytest

from data_prep.tfds.breakhis import TYPES
from data_prep.tfds.build import SETS
from data_prep.tfds.skin_cancer import TUMOURS
from plip_jax.evaluation.prompts_file import load_prompts

GRADED = ("sicapv2",)  # their prompts' order is that of the grades
SCHEMES = {
    "breakhis_eva": {TYPES[name] for name in ("TA", "MC", "F", "DC")},
    "skin_cancer_tumour": set(TUMOURS),
    "skin_cancer_malignancy": {"nontumor", "tumor"},
    "wsss4luad": {"normal", "tumor"},
    "wsss4luad_ensemble": {"normal", "tumor"},
}


@pytest.mark.parametrize(
    ("prompts", "name"),
    [
        ("bach", "bach"),
        ("breakhis", "breakhis"),
        ("colorectal_histology", "colorectal_histology"),
        ("digestpath", "digestpath"),
        ("digestpath_ensemble", "digestpath"),
        ("kather", "kather"),
        ("kather_ensemble", "kather"),
        ("lc25000_colon", "lc25000_colon"),
        ("lc25000_lung", "lc25000_lung"),
        ("mhist", "mhist"),
        ("osteosarcoma", "osteosarcoma"),
        ("pannuke", "pannuke"),
        ("pannuke_ensemble", "pannuke"),
        ("patch_camelyon", "patch_camelyon"),
        ("sicapv2", "sicapv2"),
        ("skin_cancer", "skin_cancer"),
        ("wsss4luad_3", "wsss4luad"),
    ],
)
def test_prompts_name_a_sets_classes(prompts, name):
    labels, classes = load_prompts(prompts).labels, SETS[name].about.classes
    assert sorted(labels) == sorted(classes)
    if name in GRADED:
        assert labels == classes


@pytest.mark.parametrize("prompts", SCHEMES)
def test_prompts_name_a_schemes_classes(prompts):
    assert set(load_prompts(prompts).labels) == SCHEMES[prompts]


def test_an_ensemble_has_several_names_and_about_ten_templates():
    for name in ("kather_ensemble", "pannuke_ensemble", "digestpath_ensemble", "wsss4luad_ensemble"):
        prompts = load_prompts(name)
        assert len(prompts.templates) == len(set(prompts.templates)) == 10
        assert all(len(set(names)) >= 3 for names in prompts.class_names)
        assert "this project's own" in prompts.source
