"""scripts/coop/main.sh: CoOp's own arguments give CoOp's own commands and folders."""

import json
import os
import subprocess
import sys

SAYS = "import json, sys; open(sys.argv[1], 'a').write(json.dumps(sys.argv[2:]) + chr(10))"


def test_its_arguments_reach_train_py(root, tmp_path):
    log, fake = tmp_path / "log", tmp_path / "python"
    fake.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" -c "{SAYS}" "{log}" "$@"\n')
    fake.chmod(0o755)
    finished = tmp_path / "out/caltech101/CoOp/rn50_ep50_4shots/nctx16_cscFalse_ctpend/seed2"
    finished.mkdir(parents=True)
    (finished / "results.json").touch()

    env = {**os.environ, "PYTHON": str(fake), "DATA": "/data", "OUTPUT": str(tmp_path / "out")}
    words = ["bash", str(root / "scripts/coop/main.sh"), "caltech101", "rn50_ep50", "end", "16", "4", "False"]
    done = subprocess.run([*words, "OPTIM.MAX_EPOCH", "3"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and f"{finished} is finished" in done.stdout, done.stderr
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(calls) == 2 and all(call[0] == str(root / "train.py") for call in calls)
    for seed, call in zip(("1", "3"), calls, strict=True):
        pairs = dict(zip(call[1::2], call[2::2], strict=True))
        assert pairs == {
            "--root": "/data",
            "--seed": seed,
            "--trainer": "CoOp",
            "--dataset-config-file": "configs/datasets/caltech101.yaml",
            "--config-file": "configs/trainers/CoOp/rn50_ep50.yaml",
            "--output-dir": str(finished.with_name(f"seed{seed}")),
            "TRAINER.COOP.N_CTX": "16",
            "TRAINER.COOP.CSC": "False",
            "TRAINER.COOP.CLASS_TOKEN_POSITION": "end",
            "DATASET.NUM_SHOTS": "4",
            "OPTIM.MAX_EPOCH": "3",
        }

    short = subprocess.run(words[:5], env=env, capture_output=True, text=True)
    assert short.returncode == 2 and short.stderr.startswith("error: ") and short.stderr.count("\n") == 1
