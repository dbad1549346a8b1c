"""Texts of many languages and of none, for vocabularies to agree on: some that people write, some that nobody would."""

from __future__ import annotations

import json
import random
import tarfile
import unicodedata
from pathlib import Path

ROOT = Path(__file__).parents[2]

WRITTEN = [
    *("", " ", "  ", "\n", "\t\n ", "a", "A", "Hello, World!", " a space before", "and one after ", "two  spaces"),
    *("don't can't won't we'll I'm he's they've you're I'd DON'T 'S", "it 's cut apart , is n't it ? yes !"),
    *("3.14159, 1,000,000 and 2nd; 50% of €20", "x=1;y=2 # a comment\n\tif (x<y) { return; }", "e-mail@example.org"),
    *("Ünïcödé É e\u0301 ﬁ ﬂ ½ ² Ⅳ ﷺ", "Straße ẞ ǅ İ ı ſ K Å", "naïve café — “curly” ‘quotes’… «guillemets»"),
    *("你好，世界。我爱北京天安门", "今日はとても良い天気ですね。ｶﾀｶﾅ ﾊﾝｶｸ", "안녕하세요 세계", "𠜎𠜱 rare 龘"),
    *(
        "Привет, мир",
        "Γειά σου Κόσμε ΣΑΣ",
        "مرحبا بالعالم",
        "שָׁלוֹם עולם",
        "नमस्ते दुनिया",
        "สวัสดีชาวโลก",
        "xin chào thế giới",
    ),
    *(
        "👍🏽 👩‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ ☺",
        "zero\u200bwidth\u200d\u2060joined\ufeff",
        "no\u00a0break\u2003em\u3000wide\u202frow",
    ),
    *("bell\x07 null\x00 escape\x1b[0m delete\x7f next\x85line", "a\r\nb\rc\u2028d\u2029e\x0bf\x0cg\x1ch"),
    *("Z̸̨̛͓a̶l̵g̷ó", "\u202eright to left\u202c", "\ue000private\U000f0000 \ufffd \uffff \U0010ffff", "▁▁ underscores _ ▁a"),
    *(
        "<s>a</s>b",
        "<s> </s> <pad> <unk> <mask>",
        "[CLS] [SEP] [MASK] [UNK] [PAD]",
        "<|endoftext|><|startoftext|> a<|endoftext|>b",
    ),
    *(
        "<|en|><|transcribe|> <|0.00|> said <|2.50|>",
        "<extra_id_0> and <extra_id_99>",
        "<0x41><0xE4>",
        "##ing ## a##b",
        "see <image>it<video> <audio>",
    ),
    *("<start_of_text>a<end_of_text>", "!!<start_of_text> it's<end_of_text>", ">>de<< translate me", "a >>de<< b"),
    *(
        "&lt;b&gt; &amp;amp; caf&eacute; &#128512;",
        "cafÃ© â€œmojibakeâ€\x9d",
        "supercalifragilisticexpialidocious" * 4,
        "a" * 300,
    ),
]

_RANGES = [
    *((0x20, 0x7E), (0x20, 0x7E), (0x00, 0x20), (0x7F, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF)),
    *((0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1E00, 0x1EFF), (0x2000, 0x206F)),
    *((0x2190, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xE010), (0xFE00, 0xFFFF)),
    *((0x1D400, 0x1D7FF), (0x1F300, 0x1FAFF), (0x20000, 0x20100), (0xE0020, 0xE007F)),
]


def captions() -> list[str]:
    """Names and keywords of emoji in twelve languages, and the emoji themselves."""
    found: list[str] = []
    for path in sorted((ROOT / "data" / "emoji").glob("emoji-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    fields = json.load(file)
                    found += [fields["char"], *fields["names"].values()]
                    found += [", ".join(words) for words in fields["keywords"].values()]
    return found


def scrambled(number: int, seed: int = 0) -> list[str]:
    """Characters of any script and of none, in runs of one script and across."""
    draw, made = random.Random(seed), []
    for _ in range(number):
        text = ""
        for _ in range(draw.randrange(1, 6)):
            first, last = draw.choice(_RANGES)
            text += "".join(chr(draw.randint(first, last)) for _ in range(draw.randrange(1, 8))) + draw.choice(
                ["", " "]
            )
        text = "".join(character for character in text if not 0xD800 <= ord(character) <= 0xDFFF)
        made.append(unicodedata.normalize(draw.choice(["NFC", "NFD"]), text) if draw.random() < 0.3 else text)
    return made


def texts(number: int) -> list[str]:
    """So many, half of them written by people where there are as many."""
    people = captions()
    random.Random(1).shuffle(people)
    people = people[: max(0, number // 2 - len(WRITTEN))]
    return [*WRITTEN, *people, *scrambled(number - len(WRITTEN) - len(people))]
