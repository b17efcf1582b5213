"""Linear probes, verification and t-SNE: what can be read off vectors, by the plainest means.

Notable choices
- columns are standardised by the rows that a probe is fitted on, so a box with large numbers has no advantage;
- t-SNE is exact (every pair of rows is looked at), for a thousand points at most, and starts from the principal axes, so that a map
  is the same each time.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vox import metrics

# ---- labels ----------------------------------------------------------------------------------------------------------


def standardised(X: np.ndarray, *more: np.ndarray) -> list[Tensor]:
    """X [n, H] and others, brought to mean 0 and deviation 1 of X's columns."""
    mean, deviation = X.mean(0), X.std(0) + 1e-6
    return [torch.from_numpy((each - mean) / deviation).float() for each in (X, *more)]


def classify(X: np.ndarray, y: np.ndarray, X_new: np.ndarray, strength: float = 1e-3, steps: int = 60) -> np.ndarray:
    """Multinomial logistic regression of names y [n] on X [n, H], by LBFGS: the likeliest names for X_new [m, H]."""
    names, targets = np.unique(y, return_inverse=True)
    X, X_new = standardised(X, X_new)
    targets = torch.from_numpy(targets)
    W, b = torch.zeros(X.shape[1], len(names), requires_grad=True), torch.zeros(len(names), requires_grad=True)
    optimiser = torch.optim.LBFGS([W, b], max_iter=steps, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = F.cross_entropy(X @ W + b, targets) + strength * W.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return names[(X_new @ W + b).argmax(1).numpy()]


def regress(X: np.ndarray, y: np.ndarray, X_new: np.ndarray, strength: float = 1e-3) -> np.ndarray:
    """Ridge regression of y [n] on X [n, H]: what it says for X_new [m, H]."""
    X, X_new = (each.double() for each in standardised(X, X_new))
    target = torch.from_numpy(y).double()
    W = torch.linalg.solve(X.mT @ X + strength * len(X) * torch.eye(X.shape[1]).double(), X.mT @ (target - target.mean()))
    return (X_new @ W + target.mean()).numpy()


# ---- voices ----------------------------------------------------------------------------------------------------------


def whitened(X: np.ndarray, speakers: Sequence[str], *more: np.ndarray, share: float = 0.1) -> list[np.ndarray]:
    """X [n, H] and others, turned so that what differs *within* a speaker of X spreads alike in all directions; rows of length one.

    Columns are standardised first. `share` of the mean variance is added in all directions: few utterances leave some unmeasured.
    """
    X, *more = (each.double().numpy() for each in standardised(X, *more))
    names = np.asarray(speakers)
    inside = np.concatenate([X[names == name] - X[names == name].mean(0) for name in np.unique(names)])
    variance, axes = np.linalg.eigh(inside.T @ inside / len(inside))
    turn = axes / np.sqrt(variance.clip(min=0) + share * variance.mean())
    done = [each @ turn for each in (X, *more)]
    return [each / np.linalg.norm(each, axis=1, keepdims=True) for each in done]


def verification(voices: np.ndarray, speakers: Sequence[str], draws: int = 200, seed: int = 0) -> np.ndarray:
    """Equal error rates of cosines between unit vectors [n, H]: [1 + draws], as they are, and with the variants drawn again.

    Same: two utterances of one speaker. Different: of two variants. Two settings of one variant are neither.
    """
    names = np.asarray(speakers)
    variants, of = np.unique([name.rsplit("-", 3)[0] for name in speakers], return_inverse=True)
    i, j = np.triu_indices(len(names), 1)
    score, same, other = (voices @ voices.T)[i, j], names[i] == names[j], of[i] != of[j]
    rng, results = np.random.default_rng(seed), [metrics.eer(score[same], score[other])]
    for _ in range(draws):
        often = np.bincount(rng.integers(len(variants), size=len(variants)), minlength=len(variants))[of]
        weight = often[i] * np.where(same, 1, often[j])  # a pair of one variant comes with it, a pair of two as often as both do
        results.append(metrics.eer(score[same], score[other], weight[same], weight[other]))
    return np.array(results)


# ---- maps --------------------------------------------------------------------------------------------------------------


def neighbours(X: np.ndarray, labels: Sequence[str], k: int = 5) -> np.ndarray:
    """The share of the k nearest other rows of X [n, H] (columns standardised) that have a row's label: [n]."""
    (X,) = standardised(X)
    far = torch.cdist(X, X).fill_diagonal_(torch.inf)
    names = np.asarray(labels)
    return (names[far.topk(k, largest=False).indices.numpy()] == names[:, None]).mean(1)


def affinities(X: np.ndarray, perplexity: float = 30.0) -> np.ndarray:
    """P [n, n] of t-SNE: how near rows of X [n, H] are, each with a width that gives it about `perplexity` neighbours."""
    far = np.square(X[:, None] - X[None]).sum(-1) if X.shape[1] < 8 else torch.cdist(*[torch.from_numpy(X)] * 2).square().numpy()
    np.fill_diagonal(far, np.inf)
    low, high = np.full(len(X), 1e-20), np.full(len(X), 1e20)  # of 1 / 2σ², found by halving on a logarithmic scale
    for _ in range(100):
        beta = np.sqrt(low * high)
        P = np.exp(-(far - far.min(1, keepdims=True)) * beta[:, None])
        P /= P.sum(1, keepdims=True)
        entropy = -np.sum(P * np.log(P, where=P > 0, out=np.zeros_like(P)), 1)
        low, high = np.where(entropy > np.log(perplexity), beta, low), np.where(entropy > np.log(perplexity), high, beta)
    return (P + P.T) / (2 * len(X))


def tsne(X: np.ndarray, perplexity: float = 30.0, steps: int = 500, rate: float | None = None) -> np.ndarray:
    """t-SNE: rows of X [n, H] on a map [n, 2] on which near rows are near (van der Maaten & Hinton 2008). It starts from the two
    principal axes, so that it is the same each time. Raises ValueError for fewer rows than 3 · perplexity."""
    if len(X) < 3 * perplexity:
        raise ValueError(f"{len(X)} rows are too few for a perplexity of {perplexity}: a third of them at most")
    P, centred = affinities(np.asarray(X, float), perplexity), X - X.mean(0)
    U, S, _ = np.linalg.svd(centred, full_matrices=False)
    Y = U[:, :2] * S[:2]
    Y, speed = 1e-4 * Y / Y[:, 0].std(), np.zeros((len(X), 2))
    rate = rate or max(len(X) / 12, 50.0)
    for step in range(steps):
        squares = np.square(Y).sum(1)
        near = 1 / (1 + (squares[:, None] + squares[None] - 2 * Y @ Y.T).clip(min=0))  # Student's t
        np.fill_diagonal(near, 0)
        pull = ((12 if step < steps // 4 else 1) * P - near / near.sum()) * near  # early, neighbours are drawn together more
        slope = 4 * (pull.sum(1)[:, None] * Y - pull @ Y)
        speed = (0.5 if step < steps // 4 else 0.8) * speed - rate * slope
        Y = Y + speed
    return Y - Y.mean(0)
