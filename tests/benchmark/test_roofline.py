"""The roofline against figures computed by hand."""

import pytest

from lors_cli.benchmark import roofline
from lors_cli.benchmark.roofline import KNOWN, Setting, Shape
from lors_cli.benchmark.subject import SHAPES, read_shape
from lors_cli.benchmark.variants import VARIANTS

# Milliseconds of a step on an H100 by hand, for sequences of 2048 tokens: of a q and an up projection of Llama-3-8B
BY_HAND = {
    ("frozen", 4096, 4096): (87.0, 87.0),
    ("lora", 4096, 4096): (126, 137),
    ("lors", 4096, 4096): (109, 132),
    ("lors-listing", 4096, 4096): (176, 199),
    ("sqft", 4096, 4096): (176, 235),
    ("sqft-gc", 4096, 4096): (176, 325),
    ("spp-gc-reentrant", 4096, 4096): (280, 577),
    ("lors", 14336, 4096): (383, 433),
    ("lora", 14336, 4096): (427, 411),
    ("sqft-gc", 14336, 4096): (618, 1137),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_roofline_of_a_linear(case: tuple[str, int, int]) -> None:
    name, rows, columns = case
    setting = Setting("linear", 2048, 1, 16, 2)
    taken = [
        roofline._linear(work, rows, columns, setting, KNOWN["h100"]) * 1e6
        for work in (VARIANTS[name].forward, VARIANTS[name].backward)
    ]
    assert taken == pytest.approx(BY_HAND[case], rel=0.02)


OF_A_MODEL = {
    "frozen": (100, 25.2),
    "lora": (129, 26.4),
    "lors": (125, 26.3),
    "lors-cached": (107, 40.3),
    "lors-packed": (121, 20.2),
    "lors-int4": (118, 15.1),
    "sqft": (199, 47.3),
    "spp-gc": (345, 26.9),
    "spp-columns": (523, 32.0),
}


@pytest.mark.parametrize("name", OF_A_MODEL)
def test_roofline_of_a_model(name: str) -> None:
    milliseconds, gigabytes = OF_A_MODEL[name]
    shape, setting = Shape.of(read_shape("llama-3-8b")), Setting("model", 2048, 1, 16, 2)
    assert roofline.seconds(name, shape, setting, KNOWN["h100"]) * 1e3 == pytest.approx(milliseconds, rel=0.07)
    assert roofline.peak_bytes(name, shape, setting, optimizer=True) / 1e9 == pytest.approx(gigabytes, rel=0.05)


def test_named_shapes_have_the_parameters_of_their_names() -> None:
    for name, billions in (
        ("smollm2-135m", 0.135),
        ("tinyllama-1.1b", 1.1),
        ("llama-2-7b", 6.74),
        ("llama-3-8b", 8.03),
    ):
        shape, tied = Shape.of(read_shape(name)), SHAPES[name][-1]
        count = shape.blocks * sum(r * c for r, c in shape.linears("model"))
        count += (1 if tied else 2) * shape.vocabulary * shape.hidden
        assert count / 1e9 == pytest.approx(billions, rel=0.01)
