"""A Predictor in threads: the answers of one thread, and nothing of the process is changed."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import make_run, small  # noqa: F401

from orthcr.deploy.predictor import Predictor

METHODS = ["OrthCR", "FullFT", "CLIPLoRA", "CoCoOp", "MaPLe", "TipAdapter", "MMRL"]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
THREADS = 8


def pictures(n):
    pixels = np.random.default_rng().integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(image).resize((50, 40), Image.Resampling.BICUBIC) for image in pixels]


@pytest.mark.parametrize("method", METHODS)
def test_the_first_calls_and_later_ones_agree_with_one_thread(make_run, method):  # noqa: F811
    opts = {"MaPLe": ["TRAINER.MAPLE.PROMPT_DEPTH", 2], "MMRL": ["TRAINER.MMRL.REP_LAYERS", [1, 2]]}.get(method, [])
    run = make_run(method, *opts, classes=DIGITS)
    images = pictures(6)
    wanted = [p.probability for image in images for p in Predictor(run, device="cpu")([image])]
    predictor, start, until = Predictor(run, device="cpu"), threading.Barrier(THREADS), time.monotonic() + 0.4

    def work(k):
        order, answers = np.random.default_rng(k), []
        start.wait()
        while not answers or time.monotonic() < until:
            i = int(order.integers(len(images)))
            answers.append((i, next(predictor([images[i]])).probability))
        return answers

    with ThreadPoolExecutor(THREADS) as pool:
        answers = [answer for part in pool.map(work, range(THREADS)) for answer in part]
    assert len(answers) >= THREADS and [p for _, p in answers] == [wanted[i] for i, _ in answers]


def test_predictors_made_in_threads(make_run, capsys):  # noqa: F811
    """Nothing is printed, `sys.stdout` is never another, and each gives the same answer."""
    run, outputs, over = make_run("OrthCR"), {id(sys.stdout)}, threading.Event()
    (image,) = pictures(1)
    capsys.readouterr()

    def watch():
        while not over.is_set():
            outputs.add(id(sys.stdout))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        predictors = list(pool.map(lambda _: Predictor(run, device="cpu"), range(4)))
    over.set()
    watcher.join()
    assert len(outputs) == 1 and capsys.readouterr().out == ""
    assert len({next(predictor([image])).probability for predictor in predictors}) == 1


def test_evaluation_leaves_the_encoders_as_they_are(make_run):  # noqa: F811
    """Merged weights are in a copy: no parameter of the model's own encoders is swapped, which share all others."""
    model = Predictor(make_run("OrthCR", "TRAINER.ORTHCR.ENCODERS", ["image"]), device="cpu").trainer.model
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.named_parameters()}
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
        merged = model._evaluation_cache["merged image"]
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(id(after[name]) == kept and after[name].equal(value) for name, (kept, value) in before.items())
    own = dict(model.image_encoder.named_parameters())
    different = {name for name, tensor in merged.named_parameters() if tensor is not own[name]}
    assert different == {place.parameter for place in model.places.values()}
