"""The peer's recipe on the same sketches: dictionary learning, and how coherent each atom is (arXiv 2603.14665).

Atoms are scikit-learn's dictionary of preconditioned sketches. An atom's coherence is taken here as the mean pairwise
cosine of the sketches of the 20 responses that use it most. A response belongs to the atom with its largest code.
"""

import numpy as np

from gradsteer.discovery.features import Preconditioner, unit_rows

_TOP = 20


def atoms(sketches: np.ndarray, number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Learns atoms.

    Args:
        sketches: (responses, size).
        number: of atoms.
        seed: of the learning.

    Returns:
        (responses,) the atom of each, -1 for a code of 0; (atoms,) coherence.
    """
    from sklearn.decomposition import PCA, MiniBatchDictionaryLearning

    made = Preconditioner.of(sketches, "diagonal").apply(sketches)
    reduced = PCA(min(100, *made.shape), svd_solver="randomized", random_state=0).fit_transform(made)
    learner = MiniBatchDictionaryLearning(
        number, alpha=0.1, random_state=seed, max_iter=50, transform_algorithm="lasso_lars", fit_algorithm="lars"
    )
    codes = np.abs(learner.fit(reduced).transform(reduced))
    coherence = []
    for atom in range(number):
        top = unit_rows(made[np.argsort(-codes[:, atom])[:_TOP]])
        gram = top @ top.T
        coherence.append(float((gram.sum() - np.trace(gram)) / (len(top) * (len(top) - 1))))
    labels = np.where(codes.max(axis=1) > 0, codes.argmax(axis=1), -1)
    return labels, np.array(coherence)
