r"""How the text of an answer is read as lists, sets, tuples, intervals, relations and matrices."""

import pytest

from verl_gsd.tasks.structure import (
    DEEPEST,
    Case,
    Family,
    Matrix,
    Membership,
    Named,
    NotUnderstoodError,
    Progression,
    Relation,
    Sequence,
    Union,
    Unordered,
    Value,
    read,
    split_outside,
)


def values(*texts):
    return tuple(map(Value, texts))


def group(*parts):
    return Unordered(parts, is_group=True)


def equation(left, right):
    return Relation((left, right), ("=",))


def rows(*texts):
    return tuple(values(*row) for row in texts)


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("x+1", Value("x+1")),
        ("1,234", Value("1234")),
        ("1, 2", Unordered(values("1", "2"))),
        (r"\{1;2\}", group(*values("1", "2"))),
        (r"\{1\}", group(Value("1"))),
        (r"\{1,100\}", group(*values("1", "100"))),
        (r"\{1,000\}", group(Value("1000"))),
        (r"\{1,3\},\{2\}", Unordered((group(*values("1", "3")), group(Value("2"))))),
        (r"\{\{1\}\}", group(group(Value("1")))),
        ("1,2;3,4", Unordered((group(*values("1", "2")), group(*values("3", "4"))))),
        ("1;2,3", Unordered((Value("1"), group(*values("2", "3"))))),
        ("1;2;3", Unordered(values("1", "2", "3"))),
        (r"1 \text{ and } 2", Unordered(values("1", "2"))),
        (r"1,2 \text{ and } 3,4", Unordered((group(*values("1", "2")), group(*values("3", "4"))))),
        (
            r"a=1,b=2 \text{ or } a=3",
            Unordered((group(equation("a", "1"), equation("b", "2")), group(equation("a", "3")))),
        ),
        (r"a=1,b=2 \text{ and } c=3", Unordered((equation("a", "1"), equation("b", "2"), equation("c", "3")))),
        (r"a=1 \text{ or } a=2", Unordered((equation("a", "1"), equation("a", "2")))),
        (r"a=1 \text{ or } b=2", Unordered((group(equation("a", "1")), group(equation("b", "2"))))),
        (r"x=1 \text{ or } y=2x", Unordered((equation("x", "1"), equation("y", "2x")))),
        ("a=1,a=2,b=3", Unordered((equation("a", "1"), equation("a", "2"), equation("b", "3")))),
        (r"1 \text{ or } 2", Unordered(values("1", "2"))),
        (r"1, 2 \text{ and } 3", Unordered(values("1", "2", "3"))),
        (r"\pm 2", Unordered(values("2", "- 2"))),
        ("(1,2)", Sequence("()", values("1", "2"))),
        ("]0;1]", Sequence("(]", values("0", "1"))),
        ("(1,2),(3,4)", Unordered((Sequence("()", values("1", "2")), Sequence("()", values("3", "4"))))),
        ("(x+1)(x+2)", Value("(x+1)(x+2)")),
        ("1:2:3", Sequence(":", values("1", "2", "3"))),
        ("x=5", Relation(("x", "5"), ("=",))),
        (r"1<x\le 2", Relation(("1", "x", "2"), ("<", "<="))),
        (r"x\in(1,2)", Membership("x", Sequence("()", values("1", "2")))),
        (r"x>1, x\in\mathbb{Z}", Union((Relation(("x", "1"), (">",)), Membership("x", Value(r"\mathbb{Z}"))), "and")),
        (r"(2,\infty), n\in\mathbb{Z}", Union((read(r"(2,\infty)"), Membership("n", Value(r"\mathbb{Z}"))), "and")),
        (r"(n,\infty), n\in\mathbb{Z}", Family(read(r"(n,\infty)"), "n", "Z")),
        (r"x<1 \text{ or } x>2", Union((Relation(("x", "1"), ("<",)), Relation(("x", "2"), (">",))))),
        (r"(0,1)\cup(2,3)", Union((Sequence("()", values("0", "1")), Sequence("()", values("2", "3"))))),
        (r"\mathbb{R}\setminus\{0\}", Union((Value(r"\mathbb{R}"), group(Value("0"))), "minus")),
        (r"\{x: x>1\}", Relation(("x", "1"), (">",))),
        (r"\{n\in\mathbb{Z}|n>1\}", Union((Relation(("n", "1"), (">",)), Value(r"\mathbb{Z}")), "and")),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", Matrix(rows("12", "34"))),
        (r"\begin{bmatrix}1&2\end{bmatrix}^T", Matrix(rows("1", "2"))),
        (r"(1,2)^{T}", Matrix(rows("1", "2"))),
        (r"\langle 1,2\rangle", Matrix(rows("1", "2"))),
        (r"[\begin{array}{c}1\\2\end{array}]", Matrix(rows("1", "2"))),
        (r"\begin{vmatrix}a&b\\c&d\end{vmatrix}", Value(r"(a) \cdot ((d))-(b) \cdot ((c))")),
        (
            r"\begin{cases}1 & \text{if } x>0\\ 0 & x=0\end{cases}",
            group(Case(Value("1"), "x>0"), Case(Value("0"), "x=0")),
        ),
        (r"2k\pi, k\in\mathbb{Z}", Family(Value(r"2k\pi"), "k", "Z")),
        (r"cx (c\in\mathbb{R})", Family(Value("cx"), "c", "R")),
        (r"x\equiv 1 \pmod{3}", Family(equation("x", "3k+(1)"), "k", "Z")),
        (r"k\equiv 1 \pmod{3}", Family(equation("k", "3n+(1)"), "n", "Z")),
        (r"\equiv 1 \pmod{3}", Family(Value("3k+(1)"), "k", "Z")),
        ("A(1,2)", Named("A", Sequence("()", values("1", "2")), True)),
        ("(a) 1 (b) 2", Unordered((Named("a", Value("1"), True), Named("b", Value("2"), True)))),
        (r"\text{quotient }5", Named("quotient", Value("5"), False)),
        (r"1,3,\dots,n", Progression(1, 2, Value("n"))),
        (r"(1,1,2)\text{ and its permutations}", read("(1,1,2),(1,2,1),(2,1,1)")),
        (r"(1,2,3)\text{ and cyclic permutations}", read("(1,2,3),(2,3,1),(3,1,2)")),
    ],
)
def test_the_structure_of_an_answer(text, node):
    assert read(text) == node


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(1,2",
        "1=",
        r"\{\}",
        r"p \land q",
        r"\begin{array}{c|c}1&2\end{array}",
        r"x\not\in(1,2)",
        r"0<x\in(1,2)",
        r"\{x\in\mathbb{R} : y>2\}",
        r"\pm 1\pm\sqrt{2}",
        "(" * (DEEPEST + 1) + ")" * (DEEPEST + 1),
        r"x = \pm 1, \pm 2 \text{ and } (\pm 1,\mp 2)",
        r"\begin{vmatrix}1&2\end{vmatrix}",
        r"\begin{vmatrix}1\end{vmatrix}^T",
        r"(1,2,3,4,5)\text{ and its permutations}",
        r"5\text{ and its permutations}",
    ],
)
def test_other_texts_are_not_understood(text):
    with pytest.raises(NotUnderstoodError):
        read(text)


@pytest.mark.parametrize("text", ["(a)(b)", "(a) 1 (c) 2", "(b) 1 (a) 2", "x (a) 1 (b) 2", "(a) 1"])
def test_brackets_around_letters_are_labels_only_in_order(text):
    assert "Named" not in repr(read(text))


@pytest.mark.parametrize("text", [r"1,2,\dots", r"1,\dots,n", r"1,2,4,\dots,n", r"a,2,\dots,n"])
def test_dots_have_a_meaning_only_in_an_arithmetic_progression(text):
    assert isinstance(read(text), Unordered)


def test_a_text_is_split_outside_brackets_only():
    assert split_outside(r"1, (2,3), \frac{4,5}{6}", {","}) == ["1", "(2,3)", r"\frac{4,5}{6}"]
