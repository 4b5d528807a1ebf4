"""Groups of responses: scikit-learn's clusterings, their number chosen by stability. No label is seen.

Stability of a number of groups: the prompts are halved at random, each half is grouped by itself, and the responses of
one half are given to the nearest centroid of the other's groups; the adjusted Rand index between that and their own
groups, averaged over both ways and over repeats (Lange et al. 2004, Neural Computation 16:1299; Hubert and Arabie 1985,
J. Classification 2:193). 1 is agreement, 0 is chance. A behavior in several fixed phrasings has parts that are as
stable as itself, and of three clear groups two that are joined are as stable as three: of the numbers nearly as stable
as the best, those count whose mean silhouette is nearly the largest, too (Rousseeuw 1987, J. Comput. Appl. Math.
20:53), and the smallest of them is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from gradsteer.discovery.features import unit_rows

Method = Literal["average", "ward", "kmeans", "hdbscan"]
NO_GROUP = -1
_DIMENSIONS = 40
_ROUNDING = 1e-9  # of a cosine
_NEARLY = 0.05  # below the best stability
_AS_CLEAR = 0.02  # below the largest silhouette


@dataclass(frozen=True)
class Grouping:
    """How responses are grouped.

    Attributes:
        method: agglomerative with average linkage (cosine distances) or Ward's, k-means, or HDBSCAN, which chooses its
            number of groups by itself.
        number: of groups; None chooses it by stability.
        most: the most groups that are tried.
        min_size: a smaller cluster is no group.
        least_stability: below it, all are one group.
        repeats: halvings of the prompts.
        seed: of the halvings and of k-means.

    Raises:
        ValueError: a value is out of its range.
    """

    method: Method = "average"
    number: int | None = None
    most: int = 8
    min_size: int = 20
    least_stability: float = 0.5
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"discovery.method is {self.method!r}; accepted: {', '.join(get_args(Method))}")
        if self.number is not None and (self.number < 1 or self.method == "hdbscan"):
            raise ValueError(
                f"discovery.number is {self.number}; accepted: at least 1, and null for hdbscan, which finds it"
            )
        for name, value, least in (
            ("most", self.most, 2),
            ("min_size", self.min_size, 2),
            ("repeats", self.repeats, 1),
        ):
            if value < least:
                raise ValueError(f"discovery.{name} is {value}; accepted: at least {least}")
        if not -1 <= self.least_stability <= 1:
            raise ValueError(f"discovery.least_stability is {self.least_stability}; accepted: from -1 to 1")


@dataclass(frozen=True)
class Groups:
    """Responses in groups.

    Attributes:
        labels: (responses,) the group of each, the largest being 0; -1 for none.
        number: that was asked of the clustering.
        stability: number -> stability, of all that were tried.
        centroids: (groups, features) mean features of each one's responses, of norm 1.
        reach: (groups,) the least cosine with the centroid that a later response of the group has: 2.5% of its own have
            less with the centroid of the others.
        stable: whether the number was given or some number was stable enough; otherwise all are one for want of any.
    """

    labels: np.ndarray
    number: int
    stability: dict[int, float]
    centroids: np.ndarray
    reach: np.ndarray = field(default_factory=lambda: np.empty(0))
    stable: bool = True

    def __len__(self) -> int:
        return len(self.centroids)

    def nearest(self, features: np.ndarray) -> np.ndarray:
        """(responses,) the group whose centroid is nearest, -1 where it is too far; rows of 0 belong to none."""
        return nearest(features, self.centroids, self.reach)


def nearest(features: np.ndarray, centroids: np.ndarray, reach: np.ndarray | None = None) -> np.ndarray:
    """See `Groups.nearest`."""
    if not len(centroids):
        return np.full(len(features), NO_GROUP)
    cosines = unit_rows(features) @ centroids.T
    found = cosines.argmax(axis=1)
    best = cosines.max(axis=1)
    outside = (np.abs(features).sum(axis=1) == 0) | (False if reach is None else best < reach[found] - _ROUNDING)
    return np.where(outside, NO_GROUP, found)


def group(
    features: np.ndarray, prompts: Sequence[str], options: Grouping, *, tick: Callable[[], None] | None = None
) -> Groups:
    """Groups responses.

    Args:
        features: (responses, features); responses whose row is 0 belong to no group.
        prompts: of each response, what tells its prompt.
        options: how.
        tick: called after each number of groups that is tried.
    """
    usable = np.flatnonzero(np.abs(features).sum(axis=1) > 0)
    labels = np.full(len(features), NO_GROUP)
    stability: dict[int, float] = {}
    number, stable = options.number or 1, options.number is not None
    if len(usable) >= options.min_size:
        reduced, names = _reduced(features[usable]), np.asarray(prompts)[usable]
        if options.number is None:
            tried = [0] if options.method == "hdbscan" else range(2, options.most + 1)
            for each in tried:
                if len(usable) >= 4 * each and len(set(names)) >= 4:
                    stability[each] = stability_of(reduced, names, each, options)
                if tick is not None:
                    tick()
            best = max(stability.values(), default=-1.0)
            stable = best >= options.least_stability
            if stable:
                nearly = [each for each, found in stability.items() if found >= best - _NEARLY]
                clear = {each: _silhouette(reduced, each, options) for each in nearly}
                number = min(each for each, found in clear.items() if found >= max(clear.values()) - _AS_CLEAR)
        labels[usable] = _by_size(_clusters(reduced, number, options), options.min_size)
    count = int(labels.max()) + 1
    means = [features[labels == each].mean(axis=0) for each in range(count)]
    centroids = unit_rows(np.array(means).reshape(count, features.shape[1]))
    reach = np.array([float(np.quantile(_own_cosines(features[labels == each]), 0.025)) for each in range(count)])
    return Groups(labels, number, stability, centroids, reach, stable)


def stability_of(features: np.ndarray, prompts: np.ndarray, number: int, options: Grouping) -> float:
    """The stability of a number of groups; see the module's docstring."""
    from sklearn.metrics import adjusted_rand_score

    found: list[float] = []
    for repeat in range(options.repeats):
        first = first_half(prompts, options.seed, repeat)
        halves = [features[first], features[~first]]
        least = max(2, options.min_size // 2)
        labels = [_by_size(_clusters(half, number, options), least) for half in halves]
        for one, other in ((0, 1), (1, 0)):
            count, placed = int(labels[one].max()) + 1, labels[other] >= 0
            if count < 2 or placed.sum() < 2 or labels[other].max() < 1:
                found.append(0.0)  # everything in one group says nothing of a number above 1
                continue
            centroids = unit_rows(np.array([halves[one][labels[one] == each].mean(axis=0) for each in range(count)]))
            given = nearest(halves[other][placed], centroids)
            found.append(float(adjusted_rand_score(labels[other][placed], given)))
    return float(np.mean(found))


def first_half(prompts: np.ndarray, *seed: int) -> np.ndarray:
    """(responses,) whether the prompt of each is in a half of all prompts, drawn at random."""
    names = np.unique(prompts)
    drawn = np.random.default_rng(seed).permutation(names)
    found: np.ndarray = np.isin(prompts, drawn[: len(names) // 2])
    return found


def _silhouette(features: np.ndarray, number: int, options: Grouping) -> float:
    """The mean silhouette of a number of groups, by cosine distances; a response that is in none has 0."""
    from sklearn.metrics import silhouette_samples

    labels = _by_size(_clusters(features, number, options), options.min_size)
    placed = labels >= 0
    if labels.max() < 1:
        return 0.0
    return float(silhouette_samples(features[placed], labels[placed], metric="cosine").sum() / len(labels))


def _own_cosines(members: np.ndarray) -> np.ndarray:
    """(members,) each one's cosine with the centroid of the others: in their own one it would be too near."""
    others = unit_rows(members.sum(axis=0) - members)
    found: np.ndarray = (unit_rows(members) * others).sum(axis=1)
    return found


def _reduced(features: np.ndarray) -> np.ndarray:
    """The features' first principal components, of norm 1: what groups differ in, for a fraction of the time."""
    from sklearn.decomposition import PCA

    number = min(_DIMENSIONS, *features.shape)
    if number >= min(features.shape):
        return unit_rows(features)
    made = PCA(number, svd_solver="randomized", random_state=0).fit_transform(features)
    return unit_rows(made)


def _clusters(features: np.ndarray, number: int, options: Grouping) -> np.ndarray:
    """(responses,) labels of scikit-learn."""
    from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans

    if options.method == "hdbscan":
        size = max(2, min(options.min_size, len(features) // 2))
        return np.asarray(HDBSCAN(min_cluster_size=size, copy=True).fit_predict(features))
    if number < 2 or number > len(features):
        return np.zeros(len(features), dtype=int)
    if options.method == "kmeans":
        return np.asarray(KMeans(number, n_init=5, random_state=options.seed).fit_predict(features))
    metric = {"metric": "cosine"} if options.method == "average" else {}
    return np.asarray(AgglomerativeClustering(number, linkage=options.method, **metric).fit_predict(features))


def _by_size(labels: np.ndarray, min_size: int) -> np.ndarray:
    """Labels from 0 for the largest cluster on, -1 for those that are too small; ties by the first response."""
    names, firsts, counts = np.unique(labels[labels >= 0], return_index=True, return_counts=True)
    order = np.lexsort((firsts, -counts))
    numbers = {int(names[place]): rank for rank, place in enumerate(order) if counts[place] >= min_size}
    return np.array([numbers.get(int(label), NO_GROUP) for label in labels])
