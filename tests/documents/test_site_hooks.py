"""What the site makes of links, formulas and docstrings."""

import importlib
from types import SimpleNamespace

import pytest
from support.documents import ROOT


@pytest.fixture
def hook(monkeypatch):
    """Import a module of docs/scripts/ by its name."""
    for package in ("mkdocs", "latex2mathml", "griffe"):
        pytest.importorskip(package, reason="needs lightning-linf[docs]")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "scripts"))
    return importlib.import_module


def rewritten(hook, text, page="memory.md", **extra):
    """Rewrite the links of a page of a site that has two pages and no file beside them."""
    from mkdocs.structure.files import File, Files

    names = ["memory.md", "results/prediction.md"]
    files = Files([File(name, "docs", "site", use_directory_urls=False) for name in names])
    page = SimpleNamespace(file=files.get_file_from_path(page))
    config = SimpleNamespace(extra=extra)
    return hook("hook_links").on_page_markdown(text, page=page, config=config, files=files)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](../recipes/gpt2.py)", "a (`recipes/gpt2.py`)"),
        ("[`gpt2.py`](../recipes/gpt2.py)", "`gpt2.py`"),
        ("[a](scripts/list_quantities.py#L3)", "a (`docs/scripts/list_quantities.py`)"),
        ("[b](results/prediction.md#x)", "[b](results/prediction.md#x)"),
        ("[b](../recipes/nothing.py)", "[b](../recipes/nothing.py)"),
        ("[b](https://example.org/a)", "[b](https://example.org/a)"),
        ("```\n[b](../Makefile)\n```\n", "```\n[b](../Makefile)\n```\n"),
    ],
)
def test_link_to_a_file_that_the_site_has_not_becomes_its_name(hook, text, expected):
    assert rewritten(hook, text) == expected


def test_link_to_a_file_that_the_site_has_not_leads_to_the_repository_if_that_is_known(hook):
    page, source = "results/prediction.md", "https://host/x"
    text = rewritten(hook, "[a](../../Makefile#L1)", page, source=source)
    assert text == "[a](https://host/x/blob/main/Makefile#L1)"


def test_formulas_become_mathml_and_unknown_ones_an_error(hook):
    content = hook("hook_maths").on_page_content
    inline = content(r'<p>a <span class="arithmatex">\(x &lt; y_1\)</span> b</p>')
    assert inline.startswith('<p>a <math xmlns="http://www.w3.org/1998/Math/MathML"')
    assert inline.endswith("</math> b</p>")
    aligned = r"\begin{aligned}a &amp;= b \\ c &amp;= d\end{aligned}"
    block = content(rf'<div class="arithmatex">\[{aligned}\]</div>')
    assert block.count("<mtr>") == 2
    assert "<munder><mo" in content(r'<div class="arithmatex">\[\max_i x_i\]</div>')
    with pytest.raises(Exception, match="expected a formula that latex2mathml knows"):
        content(r'<span class="arithmatex">\(\nothing{x}\)</span>')


DOCSTRING = r'''
class A:
    r"""See :meth:`f`, :class:`~torch.Tensor`, :func:`lightning_linf.one.g` and :math:`x <
    y`.

    .. math::
        a &= b \\
        c &= d

    Source:
        A paper.

        Another.

    Example:
        >>> 1
        1
    """

    size: int  # in bytes
    # Of the
    # whole.
    share: float
    hidden: int

    def f(self):
        """Do."""


def g() -> int:
    """Do.

    Returns:
        Of :class:`A`, one of two: its size.
    """
'''


def test_docstrings_become_markdown(hook, tmp_path):
    docstrings = hook("docstrings")
    import griffe

    package = tmp_path / "lightning_linf"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(DOCSTRING)
    extensions = griffe.load_extensions(docstrings.Docstrings)
    loader = griffe.GriffeLoader(search_paths=[tmp_path], extensions=extensions)
    module = loader.load("lightning_linf", try_relative_path=False)["one"]
    text = module["A"].docstring.value
    assert 'identifier="lightning_linf.one.A.f"><code>f</code>' in text
    assert 'identifier="torch.Tensor"><code>Tensor</code>' in text
    assert 'identifier="lightning_linf.one.g"><code>lightning_linf.one.g</code>' in text
    assert "$x < y$." in text
    assert "\n$$\n\\begin{aligned}a &= b \\\\\nc &= d\\end{aligned}\n$$\n" in text
    assert "**Source:**\n\nA paper.\n\nAnother.\n\nExamples:\n    >>> 1" in text
    *_, returns = module["g"].docstring.parse("google", returns_named_value=False)
    assert str(returns.value[0].annotation) == "int"
    assert returns.value[0].description.endswith("</autoref>, one of two: its size.")
    assert module["A"]["size"].docstring.value == "In bytes"
    assert module["A"]["share"].docstring.value == "Of the whole."
    assert module["A"]["hidden"].docstring is None
