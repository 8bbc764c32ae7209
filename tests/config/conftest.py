import pytest

from detkit import registry
from detkit.config import get_cfg


@pytest.fixture
def register():
    """Register components for one test."""
    added = []

    def add(socket, component, name=None):
        socket.register(component, name=name)
        added.append((socket, name or component.__name__))
        return component

    yield add
    for socket, name in added:
        socket.unregister(name)


@pytest.fixture
def toy_loss(register):
    """A classification loss whose options cover the types."""

    class ToyLoss:
        """A loss for tests.

        Args:
            gamma: focusing exponent,
                at least 0.
            alpha: weight.
        """

        def __init__(
            self,
            num_classes: int,
            *,
            gamma: float = 2.0,
            alpha: float | None = 0.25,
            steps: tuple[int, ...] = (1, 2),
            flag: bool = False,
            label: str = "x",
        ):
            self.num_classes, self.gamma, self.alpha, self.steps = num_classes, gamma, alpha, steps
            self.num_channels = self.prior_bias = self.scores = None

        def __call__(self, logits, labels, reduction):
            return logits.sum()

    return register(registry.CLS_LOSSES, ToyLoss)


@pytest.fixture
def cfg(toy_loss):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.CLS_LOSS.NAME", "ToyLoss"])
    return cfg


@pytest.fixture
def write(tmp_path):
    """Write a config file and return its path."""

    def make(text, name="a.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return make
