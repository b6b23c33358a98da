"""The benchmark: what it counts, what it measures, and that a list of cases is made, left out, or gone on with."""

import torch

from benchmarks.memory import Tracker, peak_of

MIB = 2**20


def test_the_peak_of_a_step_counted_by_hand():
    """y = relu(x W1) W2 with x, W1, W2 of 1 MiB each, and the loss its sum."""
    x, w_1, w_2 = (torch.ones(512, 512, requires_grad=k > 0) for k in range(3))

    def forward():
        h = (x @ w_1).relu()  # x W1 is freed, relu keeps its result
        return (h @ w_2).sum()

    # three inputs, h, and x W1 or h W2
    assert abs(peak_of(lambda: forward().detach(), [x, w_1, w_2], x.device) - 5) < 0.01
    # in backward: inputs, h, dy (an expanded number until the product needs a matrix), dW2, dh or its mask's product
    with Tracker([x, w_1, w_2]) as tracker:
        forward().backward()
        left = tracker.now
    assert left == 5 * MIB  # inputs and two gradients
    assert 6 * MIB < tracker.peak <= 8 * MIB


def test_a_view_costs_nothing_and_what_was_there_before_is_given_back():
    kept = torch.ones(256, 1024)
    with Tracker([kept]) as tracker:
        view = kept.view(1024, 256).mT[3:]
        assert tracker.now == tracker.peak == MIB
        copies = [view.clone() for _ in range(3)]
        more = sum(t.nbytes for t in copies)
        assert tracker.now == MIB + more
        del copies, view, kept
        assert tracker.now == 0
    assert tracker.peak == MIB + more


def test_what_only_the_graph_keeps_is_counted():
    x = torch.zeros(512, 512, requires_grad=True)

    def chain():
        y = x
        for _ in range(4):
            y = y.exp()  # whose backward wants its result
        return y

    with Tracker([x]) as tracker:
        y = chain()
        assert tracker.now == 5 * MIB
        y.sum().backward()
        del y
        assert tracker.now == 2 * MIB  # x and its gradient
    with torch.no_grad(), Tracker([x]) as tracker:
        chain()
    assert tracker.peak == 3 * MIB
