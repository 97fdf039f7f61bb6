"""Recipes: what they refuse, how they read, and the table of the named ones."""

import dataclasses

import pytest

import qlab
from qlab.model.recipe import get_recipe

NAMES = [
    "weight_only_int8", "weight_only_nf4", "weight_only_int4", "dynamic_int8", "static_int8", "static_int16x8", "float16",
    "bfloat16", "fp8_dynamic", "mxfp4", "tflite_dynamic_range", "tflite_float16", "tflite_full_integer", "tflite_int16x8",
]  # fmt: skip


def test_the_named_recipes_are_a_read_only_table():
    assert list(qlab.RECIPES) == NAMES
    assert len(qlab.RECIPES) == len(NAMES)
    with pytest.raises(TypeError):
        qlab.RECIPES["mine"] = qlab.RECIPES["mxfp4"]
    for name, recipe in qlab.RECIPES.items():
        assert get_recipe(name) is recipe
        assert recipe.name == name
        assert str(recipe) in repr(qlab.RECIPES)


@pytest.mark.parametrize("language", ["en", "zh", "vi", "fa"])
def test_a_notebook_shows_them_as_a_table(language):
    qlab.set_language(language)
    try:
        html = qlab.RECIPES._repr_html_()
    finally:
        qlab.set_language(None)
    assert html.count("<tr>") == len(NAMES) + 1
    assert all(f"<bdi>{name}</bdi>" in html for name in NAMES)
    assert ">weights<" in html if language == "en" else ">weights<" not in html


def test_recipes_are_frozen_hashable_values():
    one = qlab.Recipe(weights="int4-b32", method="gptq", options={"b": 1, "a": 2})
    two = qlab.Recipe(weights="int4-b32", method="gptq", options=(("a", 2), ("b", 1)))
    assert one == two
    assert hash(one) == hash(two)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.weights = None
    assert qlab.Recipe(weights="int8", activations="int8-asym").activations == qlab.Activations("int8-asym")


def test_a_recipe_reads_aloud():
    static = qlab.Activations("int8-asym", "static", "percentile")
    recipe = qlab.Recipe(weights="int8", activations=static, layers="blocks.*", skip=("head",), embeddings="int4-b32", min_size=9)
    assert str(recipe) == (
        "weights int8 by rtn; activations int8-asym (static, percentile); Linear, Conv1d, Conv2d named blocks.*, not head, "
        "of at least 9 weights; embeddings int4-b32"
    )
    assert str(qlab.RECIPES["float16"]) == "all parameters float16"


def test_patterns():
    recipe = qlab.Recipe(weights="int8", layers=("blocks.*", "head"), skip="*.out")
    assert [recipe.takes(n) for n in ("blocks.0.query", "head", "blocks.0.out", "embed")] == [True, True, False, False]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: qlab.Recipe(), "give weights, activations, embeddings or dtype"),
        (lambda: qlab.Recipe(weights="int5.5"), "int5.5"),
        (lambda: qlab.Recipe(weights="int8", method="gtpq"), "gtpq.*gptq"),
        (lambda: qlab.Recipe(weights="int8", types="Conv3d"), "Conv3d.*Conv2d"),
        (lambda: qlab.Recipe(weights="int8", dtype="float16"), "leave out weights"),
        (lambda: qlab.Recipe(dtype="float16", embeddings="int8", skip="head"), "leave out skip and embeddings"),
        (lambda: qlab.Recipe(dtype="int8"), "int8 has no scale; give weights.*int8-channel"),
        (lambda: qlab.Recipe("int4", options={"damping": 0.1}), "a method that searches.*gptq"),
        (lambda: qlab.Activations("kmeans4", "static"), "one scale.*int8-asym"),
        (lambda: qlab.Recipe(embeddings="int8", method="gptq"), "give weights"),
        (lambda: qlab.Recipe(weights="int8", min_size=-1), "min_size=-1"),
        (lambda: qlab.Recipe(weights="int8", min_size=True), "min_size=True"),
        (lambda: qlab.Activations("int8", "sometimes"), "sometimes.*dynamic"),
        (lambda: qlab.Activations("int8", "static", "mean"), "mean.*minmax"),
        (lambda: qlab.Activations("q4_0"), "cannot be stored as q4_0"),
        (lambda: qlab.Activations("int8-channel", "static"), "one scale.*int8-asym"),
        (lambda: qlab.Activations("int8-mse", "static"), "the observer finds it"),
        (lambda: get_recipe("dynamic_int9"), "dynamic_int8"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recipe_is_a_name_or_a_recipe():
    with pytest.raises(TypeError, match="not int"):
        get_recipe(8)
