r"""Normal forms of notation: each function alone, and that a normal form is its own normal form."""

import pytest

from verl_gsd.tasks import forms
from verl_gsd.tasks.notation import normalize_latex

CASES = [
    (forms.from_unicode, "2√3", r"2\sqrt{3}"),
    (forms.from_unicode, "√(x+1)", r"\sqrt{x+1}"),
    (forms.from_unicode, "x²−½", r"x^{2}-\frac{1}{2}"),
    (forms.from_unicode, "a₁₂", "a_{12}"),
    (forms.from_unicode, "π≤∞", r"\pi \le \infty "),
    (forms.from_unicode, "1\u2009000", r"1\,000"),
    (forms.undecorated, "**73**", "73"),
    (forms.undecorated, r"\boxed{\underline{7}}", "7"),
    (forms.undecorated, "$5$", "5"),
    (forms.undecorated, "$5", r"\$5"),
    (forms.undecorated, r"\left.\left(x+1\right)\right.^{2}", "(x+1)^{2}"),
    (forms.undecorated, r"\textbf{even}", r"\text{even}"),
    (forms.undecorated, "the answer is 42.", "42"),
    (forms.undecorated, "*5* and *6*", "*5* and *6*"),
    (forms.undecorated, "{1}{2}", "{1}{2}"),
    (forms.undecorated, r"\ang{90}", r"90^\circ"),
    (forms.undecorated, r"\SI{5}{km/h}", r"5\text{ km/h}"),
    (forms.upright_as_usual, r"1-\frac{1}{\text{e}}", r"1-\frac{1}{e}"),
    (forms.upright_as_usual, r"\text{arctg}x", r"\arctan  x"),
    (forms.upright_as_usual, r"\text{min}(1,2)", r"\min (1,2)"),
    (forms.upright_as_usual, r"90\text{ min}", r"90\text{ min}"),
    (forms.upright_as_usual, r"\text{even}", r"\text{even}"),
    (forms.usual_commands, r"\dfrac12", r"\frac12"),
    (forms.usual_commands, r"{1 \over 2}", r"\frac{1}{2}"),
    (forms.usual_commands, r"{5 \choose 2}", r"\binom{5}{2}"),
    (forms.usual_commands, "C_5^2", r"\binom{5}{2}"),
    (forms.usual_commands, r"x\leqslant 1", r"x\le  1"),
    (forms.usual_commands, r"\overline{3}", r"\overline{3}"),
    (forms.from_plain_notation, "2*pi*r", r"2\cdot \pi \cdot r"),
    (forms.from_plain_notation, "x**2", "x^2"),
    (forms.from_plain_notation, "sqrt(x+sqrt(y))", r"\sqrt{x+\sqrt{y}}"),
    (forms.from_plain_notation, "2^(n+1)", "2^{n+1}"),
    (forms.from_plain_notation, "exp(2x)", "e^{2x}"),
    (forms.from_plain_notation, "abs(x)", "|x|"),
    (forms.from_plain_notation, "log2(8)", r"\log_{2}(8)"),
    (forms.from_plain_notation, "x>=3", r"x\ge 3"),
    (forms.from_plain_notation, "sqrt(3", "sqrt(3"),
    (forms.from_plain_notation, "spin", "spin"),
    (forms.ungrouped, "1 000 000", "1000000"),
    (forms.ungrouped, r"12\,345", "12345"),
    (forms.ungrouped, "1{,}234", "1234"),
    (forms.ungrouped, "1 23", "1 23"),
    (forms.ungrouped, "12 1234", "12 1234"),
    (forms.ungrouped, "12{,}75", "12.75"),
    (forms.ungrouped, "0{,}125", "0.125"),
    (forms.with_usual_percent, r"50\ \%", r"50\%"),
    (forms.with_usual_percent, "50 percent", r"50\%"),
    (forms.with_usual_percent, "5‰", r"\frac{1}{200}"),
    (forms.with_usual_percent, "percentile", "percentile"),
    (forms.recurring_as_overline, r"0.\dot{3}", r"0.\overline{3}"),
    (forms.recurring_as_overline, r"0.1\dot{2}3\dot{4}", r"0.1\overline{234}"),
    (forms.recurring_as_overline, "0.1(6)", r"0.1\overline{6}"),
    (forms.recurring_as_overline, "0.333...", r"0.\overline{3}"),
    (forms.recurring_as_overline, r"0.\bar 6", r"0.\overline{6}"),
    (forms.recurring_as_overline, "0.33...", "0.33..."),
    (forms.recurring_as_overline, "2.5(3)(4)", "2.5(3)(4)"),
    (forms.mixed_as_fraction, "1 1/4", r"\frac{5}{4}"),
    (forms.mixed_as_fraction, r"-2\frac13", r"-\frac{7}{3}"),
    (forms.mixed_as_fraction, r"2\frac{3}{2}", r"2 \cdot \frac{3}{2}"),
    (forms.mixed_as_fraction, "11/4", "11/4"),
    (forms.mixed_as_fraction, r"x^2\frac12", r"x^2\frac12"),
    (forms.degrees, r"36^\circ 30'", r"\frac{73}{2}^\circ"),
    (forms.degrees, r"\cos 60^\circ", r"\cos (\frac{\pi}{180} \cdot 60)"),
    (forms.degrees, r"60^\circ", r"60^\circ"),
    (forms.named_figures, r"\angle CBA", r"\text{angle ABC}"),
    (forms.named_figures, r"\overline{BA}", r"\text{overline AB}"),
    (forms.named_figures, r"\triangle BAC", r"\text{triangle BAC}"),
    (forms.named_figures, r"\overline{3}", r"\overline{3}"),
    (forms.with_base_in_digits, r"101_{\text{two}}", "101_{2}"),
    (forms.with_base_in_digits, "101_{two}", "101_{2}"),
    (forms.with_base_in_digits, r"\text{2A}_{16}", "2A_{16}"),
    (forms.without_approximation, r"\frac{\pi}{4} \approx 0.785", r"\frac{\pi}{4}"),
    (forms.without_approximation, r"x \approx 3", r"x \approx 3"),
    (forms.restated_as_equation, r"\frac{\pi}{6}\text{ (i.e. }30^\circ)", r"\frac{\pi}{6} = 30^\circ"),
    (forms.restated_as_equation, "5 (= 6)", "5 = 6"),
    (forms.restated_as_equation, "(= 6)", "(= 6)"),
    (forms.functions_in_one_notation, r"f\colon x\mapsto x^2", "f(x)=x^2"),
    (forms.functions_in_one_notation, r"f(x)\equiv 0", "f(x)= 0"),
    (forms.functions_in_one_notation, r"x\equiv 1 \pmod 3", r"x\equiv 1 \pmod 3"),
    (forms.functions_in_one_notation, "7!!", "105"),
    (forms.functions_in_one_notation, "(3!)!", "(3!)!"),
    (forms.functions_in_one_notation, "7!!!", "7!!!"),
    (forms.functions_in_one_notation, r"\ln^2 2", r"\ln^{2} 2"),
    (forms.functions_in_one_notation, r"2\text{cis}\theta", r"2(\cos (\theta)+i\sin (\theta))"),
    (forms.functions_in_one_notation, r"2\text{cis}60+1", r"2\text{cis}60+1"),
    (forms.units_in_one_notation, r"20^\circ\text{C}", r"20\text{ Celsius}"),
    (forms.units_in_one_notation, "5cm", r"5\text{ cm}"),
    (forms.units_in_one_notation, r"5\text{ m s^{-1}}", r"5\text{ m s^-1}"),
    (forms.units_in_one_notation, r"\sqrt{a^{-1}}", r"\sqrt{a^{-1}}"),
]


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_a_kind_of_notation_in_its_normal_form(form, text, expected):
    assert form(text) == expected


@pytest.mark.parametrize("text", sorted({text for _, text, _ in CASES}))
def test_a_normal_form_is_its_own_normal_form(text):
    assert normalize_latex(normalize_latex(text)) == normalize_latex(text)


@pytest.mark.parametrize(
    ("text", "answer", "qualifier"),
    [
        (r"f(x)=2x \text{ for all } x", "f(x)=2x", "forallx"),
        (r"f(x)=2x\forall x\in\mathbb{R}", "f(x)=2x", "forallx"),
        ("5 because it is odd", "5", "becauseitisodd"),
        (r"5 \text{ if } n \text{ is even}", r"5 \text{ if } n \text{ is even}", ""),
        (r"\text{for all } x", r"\text{for all } x", ""),
    ],
)
def test_a_qualifier_is_split_off_only_if_it_restricts_nothing(text, answer, qualifier):
    assert forms.split_qualifier(text) == (answer, qualifier)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\$5", ("5", "dollar")),
        ("5 €", ("5", "euro")),
        ("Rs. 5", ("5", "rupee")),
        ("5", ("5", "")),
        ("€5 £3", ("€5 £3", "")),
    ],
)
def test_the_sign_of_a_currency(text, expected):
    assert forms.split_currency(text) == expected
