r"""How two structures are compared. ``test_verifier_pairs.py`` compares whole answers."""

import pytest

from verl_gsd.tasks.compare import are_equal


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("1,2", r"\{2,1\}"),
        ("1,1,2", "1,2"),
        ("(1,2)", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"2\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\4\end{pmatrix}"),
        (r"\mathbf{i}-2\mathbf{k}", "(1,0,-2)"),
        ("6:8:10", "3:4:5"),
        ("y=2x-1", "2x-y=1"),
        ("2x<4", "x<2"),
        ("-x<1", "x>-1"),
        ("f(t)=at", "f(x)=ax"),
        ("y=2x", "f(x)=2x"),
        ("x=1, x=2", "1,2"),
        ("n=1,2,3", "1,2,3"),
        (r"k\pi, k\in\mathbb{Z}", r"-n\pi, n\in\mathbb{Z}"),
        (r"\frac{\pi}{2}+2k\pi, k\in\mathbb{Z}", r"\frac{5\pi}{2}+2n\pi, n\in\mathbb{Z}"),
        (r"\frac{x}{x+1}, x\neq -1", r"\frac{x}{x+1}"),
        ("x^2+c", "x^2+3+C"),
        ("A(1,2)", "(1,2)"),
        ("x=1, y=2", "(1,2)"),
        ("(b,a)=(2,1)", "a=1, b=2"),
    ],
)
def test_equal_structures(answer, truth):
    assert are_equal(answer, truth) is True
    assert are_equal(truth, answer) is True


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("1,2", "(1,2)"),
        ("1,2", "1,2,3"),
        ("[1,2]", "(1,2)"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("3:4:5", "5:4:3"),
        ("2x<4", "x>2"),
        (r"x<2", r"x\le 2"),
        ("x<2", "y<2"),
        ("x=2", "x<2"),
        ("y=2x", "g(x)=2x"),
        ("f(x)=2x", "f(x)=3x"),
        (r"k\pi, k\in\mathbb{Z}", r"2k\pi, k\in\mathbb{Z}"),
        (r"cx, c\in\mathbb{R}", r"cx, c\in\mathbb{Z}"),
        ("A(1,2)", "B(1,2)"),
        ("A(1,2), B(3,4)", "(3,4), (1,2)"),
        ("x=1, y=2", "(2,1)"),
        ("x=1, y=2", "x=1, z=2"),
        ("1,3,\\dots,n", "1,2,\\dots,n"),
    ],
)
def test_different_structures(answer, truth):
    assert are_equal(answer, truth) is False
    assert are_equal(truth, answer) is False


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("1 2", "12"),
        (r"\frac{1", "1"),
        ("3=4", "x"),
        ("f(y)=ax", "f(x)=ax"),
        (r"ka, k\in\mathbb{R}", r"na+k, n\in\mathbb{R}"),
        (r"1+\cdots+n", "n"),
    ],
)
def test_what_is_not_understood_is_doubtful(answer, truth):
    assert are_equal(answer, truth) is None
    assert are_equal(truth, answer) is not True
    assert are_equal(answer, answer + " ") is True  # the same text
