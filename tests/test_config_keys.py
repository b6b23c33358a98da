"""What config keys may be: `Key`, the declarations, and the one line for every value that is not allowed."""

import math
import random

import pytest
import yaml

from dassl.config import check_config, flatten, get_cfg_default, merge_config, read_config
from dassl.config.defaults import KEYS, SAMPLERS
from dassl.config.keys import Key, values
from dassl.data.samplers import build_sampler
from dassl.data.transforms import INTERPOLATION_MODES
from dassl.data.transforms.transforms import AVAI_CHOICES
from dassl.engine import TRAINER_REGISTRY
from dassl.optim.optimizer import OPTIMIZERS
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import config_values, declarations_of, default_cfg
from orthcr.run.flags import parse

# ------------------------------------------------------------------ Key


def test_bounds_agree_with_a_plain_comparison():
    draw = random.Random()
    for _ in range(300):
        low, high = sorted(draw.uniform(-9, 9) for _ in range(2))
        value = draw.choice([draw.uniform(-9, 9), low, high, float(round(low))])
        assert Key(1.0, low=low, high=high).allows(value) == (low <= value <= high)
        assert Key(1.0, above=low, below=high).allows(value) == (low < value < high)
        assert Key([1.0], low=low).allows([high, value]) == (value >= low)


@pytest.mark.parametrize(
    "key, good, bad",
    [
        (Key(1.0), [0.0, 3, -1e30], [math.inf, -math.inf, math.nan, True, "1", None, [1.0]]),
        (Key(1, high=3), [3, -(10**400)], [4, 1.0, True, 10**400, None]),
        (Key(True), [False], [0, 1, None, "True"]),
        (Key("a"), ["", "b c"], [None, 1, ["a"], "a\0b"]),
        (Key("a", choices=("a", "b")), ["b"], ["c", "", None]),
        (Key(1, none=True), [None, 2], [2.0]),
        (Key(None), [None, 1, "a", [1]], []),
        (Key(None, of=float, low=0), [None, 0, 1.5], [-1, "a", [1.0], math.nan]),
        (Key(1.0, of=float, low=0, high=1, word="auto"), ["auto", 0, 0.5], ["Auto", "", 2, True, None]),
        (Key("auto", of=float, low=0, high=1, word="auto"), ["auto", 0, 0.5], ["Auto", "", 2, True, None]),
        (Key((1, 2), length=2), [(3, 4), [3, 4]], [(1,), (1, 2, 3), (1, 2.0), (1, True), 1, None]),
        (Key([0.5]), [[], [1, 0.5]], [["a"], [None], [math.nan], [True]]),
        (Key([], of=int), [[], [-1]], [[True], [1.0], ["1"]]),
        (Key((), choices=("a", "b")), [(), ("b", "a")], [("c",), (1,), "a"]),
        (Key([1], rule=("at least one", len)), [[2]], [[]]),
        (Key(3, rule=("odd", lambda n: n % 2 == 1)), [5], [4, None, 5.0]),
    ],
    ids=str,
)
def test_what_a_key_allows(key, good, bad):
    assert all(key.allows(value) for value in good) and not any(key.allows(value) for value in bad)


def test_what_is_allowed_in_words():
    assert str(Key(1.0, above=0, high=2)) == "a number above 0 and at most 2"
    assert str(Key((1, 1), length=2, low=1)) == "2 whole numbers at least 1"
    assert str(Key("", choices=("", "mlp"))) == 'one of "", mlp'
    assert str(Key(5, rule=("odd", bool), none=True)) == "a whole number, odd or None"
    assert str(Key("auto", of=float, low=0, word="auto")) == 'a number at least 0 or "auto"'


def test_defaults_of_declarations():
    tree = {"A": Key([1], of=int), "B": {"C": Key(2.0, low=1), "D": "x"}}
    assert values(tree) == {"A": [1], "B": {"C": 2.0, "D": "x"}}
    first, second = get_cfg_default(), get_cfg_default()
    first.INPUT.PIXEL_STD[0] = 7.0
    assert second.INPUT.PIXEL_STD[0] == 0.229 and KEYS["INPUT"]["PIXEL_STD"].default[0] == 0.229


# ------------------------------------------------------------------ the declarations


def test_every_default_is_allowed():
    setup_cfg(parse([]))  # every trainer is found
    for trainer in TRAINER_REGISTRY.registered_names():
        cfg = default_cfg(trainer)
        cfg.DATASET.NAME, cfg.TRAINER.NAME = "Shapes", trainer
        check_config(cfg, declarations_of(trainer))
        assert flatten(declarations_of(trainer)).keys() >= flatten(KEYS).keys()


def test_choices_are_those_of_the_engine():
    assert set(KEYS["INPUT"]["TRANSFORMS"].choices) == set(AVAI_CHOICES)
    assert set(KEYS["INPUT"]["INTERPOLATION"].choices) == set(INTERPOLATION_MODES)
    assert set(KEYS["OPTIM"]["NAME"].choices) == set(OPTIMIZERS)
    with pytest.raises(ValueError) as error:
        build_sampler("")
    assert all(name in str(error.value) for name in SAMPLERS)


NONSENSE = [
    ("TEST.FINAL_MODEL", "best", "one of last_step, best_val"),
    ("TRAIN.COUNT_ITER", "nonsense", "one of train_x, train_u, smaller_one"),
    ("MODEL.HEAD.NAME", "nope", 'one of "", mlp'),
    ("DATASET.NUM_SHOTS", 0, "not 0: -1 means all"),
    ("DATASET.NUM_SHOTS", -5, "a whole number at least -1"),
    ("OPTIM.LR", 0, "above 0"),
    ("OPTIM.LR", 1e30, "at most 1000"),
    ("OPTIM.LR", "nan", "float"),
    ("TRAINER.ORTHCR.TAU", "1e999", "a number above 0"),
    ("INPUT.CUTOUT_LEN", -7, "at least 0"),
    ("INPUT.CUTOUT_LEN", 1000000, "at most the shorter side of INPUT.SIZE"),
    ("INPUT.PIXEL_STD", [-1, 1, 1], "3 numbers at least 0.001"),
    ("INPUT.PIXEL_MEAN", [0.5, 0.5], "3 numbers"),
    ("INPUT.RRCROP_SCALE", (2, 3), "at most 1"),
    ("INPUT.RRCROP_SCALE", (0.5,), "2 numbers"),
    ("INPUT.RRCROP_SCALE", (0.9, 0.1), "the second no smaller"),
    ("INPUT.SIZE", [32.0, 32.0], "2 whole numbers"),
    ("TRAINER.ORTHCR.TEMPLATE", "a {}{}", "with one {}"),
    ("TRAINER.ORTHCR.LAYERS", [True], "a list of whole numbers"),
    ("DATALOADER.K_TRANSFORMS", 0, "at least 1"),
    ("DATALOADER.K_TRANSFORMS", 2, "must be 1 for OrthCR"),
    ("INPUT.NO_TRANSFORM", True, "must be False for OrthCR"),
    ("OPTIM.LR", None, "a number"),
    ("DATALOADER.NUM_WORKERS", None, "a whole number"),
    ("SEED", None, "a whole number"),
    ("SEED", 2**32, "below 4294967296"),
    ("DATASET.SUBSAMPLE_CLASSES", "x/../../..", "one of all, base, new"),
    ("DATASET.NAME", "../..", "one of"),
    ("TEST.SPLIT", "../x", "one of test, val"),
    ("TRAINER.NAME", "CoOp", "the run is of OrthCR: give --trainer"),
    ("TRAINER.COOP.N_CTX", 4, "is no key of OrthCR"),
    ("USE_CUDA", "maybe", "True or False"),
    ("INPUT.TRANSFORMS", ["cutuot"], 'do you mean "cutout"?'),
    ("DATALOADER.TEST.SAMPLER", "RandomClassSampler", "one of RandomSampler, SequentialSampler"),
]


@pytest.mark.parametrize("key, value, allowed", NONSENSE, ids=lambda v: str(v)[:24])
def test_nonsense_is_told_in_one_line_before_anything_is_made(key, value, allowed, tmp_path, monkeypatch, one_line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        setup_cfg(parse([key, str(value)]))
    said = one_line(error)
    assert key in said and allowed in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "key, value, line",
    [
        ("DATASET.NUM_SHOTS", "-5", "is -5, but must be a whole number at least -1, not 0: -1 means all"),
        ("TEST.SPLIT", "vall", 'is "vall", but must be one of test, val, do you mean "val"?'),
        ("INPUT.SIZE", "[32.0, 32]", "is (32.0, 32), but must be 2 whole numbers at least 1 and at most 4096"),
    ],
)
def test_the_line_has_key_value_and_what_is_allowed(key, value, line):
    with pytest.raises(ValueError) as error:
        setup_cfg(parse([key, value]))
    assert str(error.value) == f"{key} {line}"
    with pytest.raises(ValueError) as error:
        setup_cfg(parse(["OPTIM.NAME", "sgd\n" * 999]))
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_programs_may_do_with_dassls_defaults_what_they_want():
    cfg = get_cfg_default()
    merge_config(cfg, ["OPTIM.LR", 1e30, "DATASET.NUM_SHOTS", 0, "TEST.SPLIT", "train"])
    assert (cfg.OPTIM.LR, cfg.DATASET.NUM_SHOTS, cfg.TEST.SPLIT) == (1e30, 0, "train")


# ------------------------------------------------------------------ YAML files


def laughs(levels, start, link):
    lines = [f"x0: &x0 {start}"] + [f"x{k}: &x{k} {link(k - 1)}" for k in range(1, levels)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    "content, words",
    [
        (b"OPTIM:\n  LR: 0.1\n  MAX_EPOCH: 3\n  LR: 0.2\n", ['"LR" is there twice', "line 4"]),
        (b"SEED: 1\nOPTIM: {}\nSEED: 1\n", ['"SEED" is there twice', "line 3"]),
        (b"A: " + b"[" * 3000 + b"]" * 3000, ["nested too deep"]),
        (b"".join(b" " * k + b"a:\n" for k in range(600)), ["nested too deep"]),
        ("# tiny\nDATASET:\n  ROOT: Donn\u00e9es\n".encode("latin-1"), ["line 3: byte 0xe9 is no UTF-8"]),
        (b"SEED: 1\0\n", ["special characters are not allowed"]),
        (b"SEED: !!timestamp x\n", ["Bad YAML"]),
        (b"SEED: !!python/object/apply:os.system ['touch x']\n", ["could not determine a constructor", "line 1"]),
        (laughs(30, "{a: 1, b: 2}", lambda k: f"{{a: *x{k}, b: *x{k}}}"), ["more than 100,000 values"]),
        (laughs(30, "[1, 2]", lambda k: f"[*x{k}, *x{k}]"), ["more than 100,000 values"]),
        (b"SEED: &a [*a]\n", ["Bad YAML", "contains itself"]),
        (b"OPTIM: &a {LR: *a}\n", ["Bad YAML", "contains itself"]),
        (b"OPTIM:\n  LR: " + b"9" * 5000, ["Bad YAML"]),
        (b"OPTIM:\n  STEPSIZE: '" + b"(" * 5000 + b"'", ["OPTIM.STEPSIZE", "type tuple"]),
        (b"OPTIM:\n  LR: '{[]: 1}'", ["OPTIM.LR", "type float"]),
    ],
    ids=lambda v: str(v)[:24],
)
def test_what_is_wrong_with_a_yaml_file(content, words, tmp_path, one_line):
    path, cfg = tmp_path / "c.yaml", get_cfg_default()
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        merge_config(cfg, path)
    said = one_line(error)
    assert str(path) in said and len(said) < 400 and cfg == get_cfg_default()
    assert all(word in said for word in words), said


def test_aliases_and_merge_keys_are_yaml(tmp_path):
    path, cfg = tmp_path / "c.yaml", get_cfg_default()
    path.write_text("OPTIM: &o\n  LR: 0.5\n  GAMMA: &g 0.25\n  WARMUP_CONS_LR: *g\nMODEL:\n  HEAD:\n    <<: {BN: no}\n")
    merge_config(cfg, path)
    assert (cfg.OPTIM.LR, cfg.OPTIM.GAMMA, cfg.OPTIM.WARMUP_CONS_LR, cfg.MODEL.HEAD.BN) == (0.5, 0.25, 0.25, False)


def test_a_number_too_large_for_a_float(one_line):
    with pytest.raises(ValueError, match="OPTIM.LR is inf, but must be a number at least 0") as error:
        setup_cfg(parse(["OPTIM.LR", "1" + "0" * 400]))
    one_line(error)


def test_a_config_that_was_cut_anywhere(tmp_path, one_line):
    """Whatever is left, it is told: settings that are gone are not taken from the defaults without a word."""
    whole = setup_cfg(parse(["--trainer", "CoOp"])).dump().encode()
    path = tmp_path / "config.yaml"
    path.write_bytes(whole)
    assert read_config(path) == flatten(yaml.safe_load(whole)) == config_values(setup_cfg(parse(["--trainer", "CoOp"])))
    args = ["--eval-only", "--model-dir", str(tmp_path)]
    assert setup_cfg(parse(args)).TRAINER.NAME == "CoOp"
    ends = [whole.index(b"VERBOSE:") + n for n in (0, 8, 9, 11)]  # of the last line: VERBOSE: True
    for size in [0, *sorted(random.sample(range(1, len(whole) - 5), 12)), *ends]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError) as error:
            setup_cfg(parse(args))
        assert str(path) in one_line(error), size
