"""Texts on which tokenizers disagree, if they do: each alone, each with the next one, each pair of ASCII characters."""

from __future__ import annotations

from itertools import pairwise

ODD_TEXTS = (
    "", " ", "  \t\n ", "a", "a b", "  lead", "trail ", "trail  ", "a  b   c", "tab\tnew\nline\r\nend", "\n\n\n\nx",
    "\r\r\tx", "nul\0in", "ctl\x01\x02\x7f\x80\x9fx", "\x0b\x0cx\x0by", "z\u200bw\u200c\u200d\ufeffx", "\u200b",
    "\u00ad soft\u180e", "e\u0301 combining o\u0308\u0327", "\u0301alone", "a" + "\u0300\u0301\u0302" * 40,
    "q\u0307\u0323 q\u0323\u0307", "\u6f22\u5b57\u304b\u306a\u30ab\u30ca", "\ud55c\uad6d\uc5b4 \uac00\uac01",
    "\u1100\u1161\u11a8 \u3131", "\U00020000\U00020001", "\uff71\uff72 \uff21\uff22 \uff11\uff12", "x\u3000y",
    "\u300c\u7d42\u300d\u3002\u3001", "\U0001f468\u200d\U0001f469\u200d\U0001f467 ok \U0001f642\U0001f3fd",
    "\U0001f1e9\U0001f1ea", "\u263a\ufe0f \u2764", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0645\u0631\u062d\u0628\u0627 \ufdfa", "\u202eback\u202c", "\ue000\uf8ff private", "\U000f0000x",
    "\ufffd \ufffe \uffff", "\U0001d400\U0001d7d8", "\u115f\u1160\u3164",
    "\u0915\u094d\u0937\u0924\u094d\u0930\u093f\u092f", "\u0e44\u0e17\u0e22\u0e20\u0e32\u0e29\u0e32",
    "\u0663\u0664 \u096b\u096c", "x" * 99, "x" * 100, "x" * 101, "y" * 200, "y" * 201, "q" * 600, "\u6f22" * 150,
    "\u00e9" * 150, "ab" * 300, "!" * 300, "." * 257, "- - - --- ----", "a" + " " * 60 + "b", "0" * 120, "=-" * 80,
    "ha" * 40, "A" * 101, "MiXeD CaSe", "ALL CAPS", "camelCase snake_case",
    "\u00c0\u00c9\u00ce\u00d5\u00dc \u00f1 \u00e7", "\u00df \u1e9e \u017f", "\u0130\u0131Ii", "\ufb01 \ufb02 \ufb00",
    "\u01c5 \u01c6", "\u2167 \u2460 \u00bd \u00b2", "\u212a \u2126 \u212b \u00c5", "http://a.b/c?d=e&f=%20#g",
    "me@mail.co.uk", "1234567890 12,345.67 1e-9", "don't I'll we've 'S 'RE", "a\t's \n't\r\n'm", "C++ C# .NET",
    "$\u20ac\u00a3\u00a5 +=<>^`|~", "\u00bfx? \u00abx\u00bb \u201cy\u201d \u2018z\u2019 \u2013 \u2014 \u2026",
    "{[(<\\/>)]}", "x\u00a0y\u2003z\u2028v\u2029u\u0085t",
    "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2 \u03a3\u0391\u03a3", "\u0401\u0416 \u0439 \u0438\u0306", "[SEP]",
    "[CLS] x", "a[SEP]b", "a [MASK] b", "[mask]", "[PAD][UNK]", "<s>", "</s>", "<pad>", "a <mask>", "<unk>",
    "<|endoftext|>", "<extra_id_0>", "<0x41>", "\u2581 \u2581x y\u2581z", "\u0120 \u0120x \u010a", "##ing ##",
    "@@ x@@",
)  # fmt: skip
PRINTABLE = [chr(c) for c in range(32, 127)]


def odd_texts() -> list[str]:
    alone = list(ODD_TEXTS)
    together = [a + between + b for a, b in pairwise(alone) for between in ("", " ")]
    pairs = [between.join(a + b for b in PRINTABLE) for a in PRINTABLE for between in ("", " ")]
    return [*alone, *together, *pairs]
