"""The solver beside scikit-learn's: the same optimum, alone or in a sweep, and a frozen lane that does not move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from plip_jax.evaluation import linear_probe, logistic_solver
from plip_jax.evaluation.embeddings import EvaluationError
from plip_jax.evaluation.linear_probe import balanced_weights, fit_probes, objective
from plip_jax.evaluation.logistic_solver import SolverConfig

STRENGTHS = (0.01, 1.0, 100.0)


def mixture(num_classes: int, n: int = 400, d: int = 12, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes of unequal sizes around a common offset, L2-normalised as embeddings are."""
    rng = np.random.default_rng(num_classes)
    labels = rng.choice(num_classes, n, p=np.arange(1, num_classes + 1) / sum(range(num_classes + 1)))
    labels[:num_classes] = np.arange(num_classes)
    features = 2 + rng.normal(size=(num_classes, d))[labels] + spread * rng.normal(size=(n, d))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


def sklearn_optimum(features, labels, strength, class_weight=None) -> float:
    """The objective at scikit-learn's solution, written with its own coefficients."""
    model = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000, class_weight=class_weight)
    model.fit(features.astype(np.float64), labels)
    logits = model.decision_function(features.astype(np.float64))
    if logits.ndim == 1:
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    entropy = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
    weights = np.ones(len(labels)) if class_weight is None else balanced_weights(labels, logits.shape[1])[labels]
    return float(strength * (weights @ entropy) + 0.5 * (model.coef_**2).sum())


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("num_classes", [2, 9])
def test_the_optimum_is_scikit_learns(num_classes, class_weight):
    features, labels = mixture(num_classes)
    weights = None if class_weight is None else balanced_weights(labels, num_classes)
    for probe in fit_probes(features, labels, num_classes, STRENGTHS, class_weights=weights):
        ours = objective(probe, features, labels, class_weights=weights)
        theirs = sklearn_optimum(features, labels, probe.strength, class_weight)
        assert probe.converged
        assert ours == pytest.approx(theirs, rel=1e-5)  # the bound the project sets


def test_two_classes_give_scikit_learns_weights():
    features, labels = mixture(2)
    [probe] = fit_probes(features, labels, 2, [1.0], config=SolverConfig(tolerance=1e-10))
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(features.astype(np.float64), labels)
    # The loss is quadratic at its optimum: float32's 1e-7 of the loss is 3e-4 of the weights.
    np.testing.assert_allclose(probe.weights[1] - probe.weights[0], model.coef_[0], atol=1e-3)
    np.testing.assert_allclose(probe.intercepts[1] - probe.intercepts[0], model.intercept_[0], atol=1e-3)


def test_separable_classes_converge():
    features, labels = mixture(4, spread=0.01)
    for probe in fit_probes(features, labels, 4, (1.0, 1e4)):
        assert probe.converged
        assert objective(probe, features, labels) == pytest.approx(
            sklearn_optimum(features, labels, probe.strength),
            rel=1e-5,  # as above
        )
        assert (probe.predict(features) == labels).all()


def test_a_constant_feature_and_one_of_another_scale_do_no_harm():
    features, labels = mixture(3)
    features = np.concatenate([features, np.full((len(features), 1), 7, np.float32), 300 * features[:, :1]], axis=1)
    [probe] = fit_probes(features, labels, 3, [1.0])
    assert probe.converged
    assert objective(probe, features, labels) == pytest.approx(sklearn_optimum(features, labels, 1.0), rel=1e-5)
    assert np.abs(probe.weights[:, -2]).max() < 1e-4  # what is constant is the intercept's


def test_the_objective_of_weights_written_by_hand():
    probe = linear_probe.LogisticProbe(
        np.float32([[0], [np.log(3)]]), np.zeros(2, np.float32), strength=2.0, iterations=0, gap=0.0, converged=True
    )
    # Logits (0, ln 3) and (0, 0): probabilities 1/4, 3/4 and 1/2, 1/2; two classes, so the penalty is (ln 3)^2.
    found = objective(probe, np.float32([[1], [0]]), np.array([1, 0]), class_weights=np.array([1.0, 10.0]))
    assert found == pytest.approx(2 * (10 * np.log(4 / 3) + np.log(2)) + np.log(3) ** 2, rel=1e-7)  # float32's ln 3


def test_a_sweep_gives_what_its_strengths_give_alone():
    features, labels = mixture(5)
    strengths = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e3, 1e4)
    config = SolverConfig(tolerance=1e-8)
    together = fit_probes(features, labels, 5, strengths, config=config)
    assert len({probe.iterations for probe in together}) > 3  # or nothing was frozen and dropped on the way
    for probe in together:
        [alone] = fit_probes(features, labels, 5, [probe.strength], config=config)
        values = [objective(each, features, labels) for each in (probe, alone)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)  # the products' order of summation differs
        assert (probe.predict(features) != alone.predict(features)).mean() < 0.01  # only on a border


def test_a_lane_that_converged_is_not_moved():
    features, labels = mixture(3)
    problem = logistic_solver.prepare(features, labels, np.full(3, 1 / len(labels)))
    config = SolverConfig(max_iterations=50)
    start = logistic_solver._start(problem, jnp.float32([1.0, 1e-4, 1e-2]), 3, config.memory)
    before = jax.jit(logistic_solver._iterate, static_argnums=2)(problem, start, config)
    before = before._replace(active=jnp.array([False, True, False]))
    after = logistic_solver._run(problem, before, 0, config)
    assert not after.active.any()
    assert int(after.iterations[1]) > 3
    for lane in (0, 2):
        for name, value in after._asdict().items():
            np.testing.assert_array_equal(value[lane], getattr(before, name)[lane], err_msg=name)


def test_too_few_iterations_are_told():
    features, labels = mixture(3)
    weak, strong = fit_probes(features, labels, 3, (1e4, 1e-6), config=SolverConfig(max_iterations=8))
    assert not weak.converged
    assert weak.gap > 1e-6
    assert strong.converged
    assert strong.iterations <= 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 2)), np.array([0, 2, 2]), 3, [1.0]), "leave out the classes without examples"),
        ((np.zeros((3, 2)), np.array([0.0, 1, 1]), 2, [1.0]), "an integer label a row"),
        ((np.zeros((3, 2)), np.array([0, 1, 1]), 2, [0.0]), "strengths above 0"),
        ((np.zeros((3, 2)), np.array([0, 0, 0]), 1, [1.0]), "2 or more classes"),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments, message):
    with pytest.raises(EvaluationError, match=message):
        fit_probes(*arguments)


def test_weights_must_be_one_a_class():
    features, labels = mixture(3)
    with pytest.raises(EvaluationError, match="a weight above 0 for each of 3 classes"):
        fit_probes(features, labels, 3, [1.0], class_weights=np.ones(2))
    with pytest.raises(EvaluationError, match="a tolerance in"):
        SolverConfig(tolerance=0)
