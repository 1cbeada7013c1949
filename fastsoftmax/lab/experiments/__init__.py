"""The experiments, each a module with the same four names.

NAME, TITLE : str
    As on the command line; as a heading.
run(lab) -> dict
    Runs it through `lab` (a `Lab`) and returns

    - "article": the claim as it is commonly made;
    - "settings": what the figures depend on: sizes, steps, seeds;
    - "measured": the numbers;
    - "claims": a list of {"claim", "measured", "holds"}: the parts of the article, what was seen, in a sentence with
      numbers, and whether the claim holds: "yes", "no" or "partly";
    - "verdict": one sentence.
tables(result) -> list of report.Table
    For the terminal and the report, from what `run` returned, as read back from JSON.
draw(result) -> list of report.Picture
    Figures, likewise.
"""

import time
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from fastsoftmax.lab import jobs, texts

# Seconds of one core that the full run of each took where a product of 2048 x 2048 float32 matrices takes PRODUCT.
SECONDS = {"ablations": 930, "temperature": 60, "scaling": 1360, "heads": 820, "alternatives": 2200}
PRODUCT = 0.075
FULL_STEPS = 600
SYMBOLS_A_TOKEN = 4  # bytes of English that a usual tokenizer makes one token of: claims are about such tokens
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # quantiles of t for 95 % intervals, by the number of values

NAMES = ("ablations", "temperature", "scaling", "heads", "alternatives")


def duration(lab, names):
    """About how long the full run of the experiments takes here, in words, from the time of a matrix product."""
    x = np.ones((2048, 2048), np.float32)
    times = []
    for _ in range(3):
        began = time.process_time()
        x @ x
        times.append(time.process_time() - began)
    cores = sum(SECONDS[name] for name in names) * min(times) / PRODUCT * (lab.steps or FULL_STEPS) / FULL_STEPS
    minutes = cores / lab.runner.processes / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def find(name):
    """The module of an experiment."""
    return import_module(f"fastsoftmax.lab.experiments.{name}")


def more_perplexity(losses, others, symbols=SYMBOLS_A_TOKEN):
    """By how many % the perplexity of so many symbols is higher in `others`, for each seed: the pairs share a seed."""
    return 100 * np.expm1(symbols * np.subtract(others, losses, dtype=np.float64))


def sure(values):
    """Whether 0 lies outside the 95 % interval, by Student's t, of the mean of values over seeds; never of one seed."""
    half = STUDENT[len(values)] * np.std(values, ddof=1) / len(values)**0.5 if len(values) in STUDENT else np.inf
    return bool(abs(np.mean(values)) > half)


@dataclass
class Lab:
    """The settings of a run, and its jobs: an experiment works with nothing else.

    Parameters
    ----------
    runner : jobs.Runner
    text : texts.Text
        What the models learn to continue.
    quick : bool
        Smaller models, fewer steps and seeds.
    seed : int
        The first seed.
    steps : int, optional
        In place of each experiment's number of training steps.
    """

    runner: jobs.Runner
    text: texts.Text
    quick: bool = False
    seed: int = 0
    steps: int | None = None

    def run(self, jobs, title, alone=False):
        """The results of the jobs, in their order; those that were computed before are read."""
        return self.runner.run(jobs, title, alone)

    def choose(self, quick, full):
        """One of the two, by how the lab runs."""
        return quick if self.quick else full

    def steps_of(self, quick, full):
        """The number of training steps."""
        return self.steps or self.choose(quick, full)

    def seeds(self, quick, full):
        """So many seeds, from the first on."""
        return [self.seed + i for i in range(self.choose(quick, full))]

    def language_model(self, seed, steps=None, evaluations=None, rates=None, **model):
        """The job that trains a decoder on the text, with the sizes that the experiments share.

        Parameters that are not given are the same in every experiment, so that a model that two of them need is
        trained once.
        """
        sizes = self.choose(
            {"width": 64, "layers": 2, "heads": 2}, {"width": 256, "layers": 4, "heads": 4})
        steps = steps or self.steps_of(120, FULL_STEPS)
        model = sizes | model
        return jobs.Job("training:train", {
            "model": model, "data": {"text": self.text.digest, "windows": self.choose(16, 64)}, "steps": steps,
            "batch": self.choose(8, 8), "length": self.choose(64, 128), "rate": self.choose(4e-3, 1e-3),
            "seed": seed, "evaluations": evaluations or self.choose(8, 20), "rates": rates,
            "log_entropy": model.get("attention", "softmax") == "softmax",
        }, cost=steps * model["layers"] * model["width"] ** 2 / 1e6)
