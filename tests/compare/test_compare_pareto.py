from hypothesis import given, settings
from hypothesis import strategies as st

from compresskd.compare.pareto import front

maybe = st.one_of(st.none(), st.integers(0, 6).map(float), st.floats(0, 1))


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(maybe, maybe), max_size=30))
def test_front_equals_the_definition(points):
    costs, scores = [c for c, _ in points], [s for _, s in points]

    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    whole = [point for point in points if None not in point]
    expected = [None not in point and not any(beats(other, point) for other in whole) for point in points]
    assert front(costs, scores) == expected


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.floats(1, 9), st.floats(0, 1)), min_size=1, max_size=30), st.randoms())
def test_front_does_not_depend_on_the_order_and_is_never_empty(points, random):
    shuffled = list(points)
    random.shuffle(shuffled)
    one = {p for p, on in zip(points, front(*zip(*points, strict=True)), strict=True) if on}
    other = {p for p, on in zip(shuffled, front(*zip(*shuffled, strict=True)), strict=True) if on}
    assert one == other
    assert one
