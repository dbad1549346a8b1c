"""What Whisper's ``generate`` begins with: language, task and whether it tells times (Radford et al. 2022, §2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = """
af afrikaans, am amharic, ar arabic, as assamese, az azerbaijani, ba bashkir, be belarusian, bg bulgarian, bn bengali,
bo tibetan, br breton, bs bosnian, ca catalan|valencian, cs czech, cy welsh, da danish, de german, el greek, en english,
es spanish|castilian, et estonian, eu basque, fa persian, fi finnish, fo faroese, fr french, gl galician, gu gujarati,
ha hausa, haw hawaiian, he hebrew, hi hindi, hr croatian, ht haitian creole|haitian, hu hungarian, hy armenian,
id indonesian, is icelandic, it italian, ja japanese, jw javanese, ka georgian, kk kazakh, km khmer, kn kannada,
ko korean, la latin, lb luxembourgish|letzeburgesch, ln lingala, lo lao, lt lithuanian, lv latvian, mg malagasy,
mi maori, mk macedonian, ml malayalam, mn mongolian, mr marathi, ms malay, mt maltese, my myanmar|burmese, ne nepali,
nl dutch|flemish, nn nynorsk, no norwegian, oc occitan, pa punjabi|panjabi, pl polish, ps pashto|pushto, pt portuguese,
ro romanian|moldavian|moldovan, ru russian, sa sanskrit, sd sindhi, si sinhala|sinhalese, sk slovak, sl slovenian,
sn shona, so somali, sq albanian, sr serbian, su sundanese, sv swedish, sw swahili, ta tamil, te telugu, tg tajik,
th thai, tk turkmen, tl tagalog, tr turkish, tt tatar, uk ukrainian, ur urdu, uz uzbek, vi vietnamese, yi yiddish,
yo yoruba, yue cantonese, zh chinese|mandarin
"""
CODES: Mapping[str, str] = {
    name: entry.split()[0] for entry in _NAMES.split(",") for name in entry.split(maxsplit=1)[1].strip().split("|")
}
"""The names by which its configs may call a language, and the codes that its tokens have."""


def begin_of(
    said: Mapping[str, Any], config: Mapping[str, Any], start: int | None, notes: list[str]
) -> tuple[list[int] | None, list[int]]:
    """The ids that stand before what is written, and the languages of which the likeliest is put after the first.

    A language that is said is one of the ids, a prompt of the user's own still says another (see ``SpecialIds``).
    None and none: nothing of it is said.

    Args:
        said: what ``generate`` reads where nobody asks; ``language`` and ``task`` go before ``forced_decoder_ids``.
        config: which says the latter in older folders.
        notes: what cannot be taken is added.
    """
    languages, tasks = said.get("lang_to_id") or {}, said.get("task_to_id") or {}
    untimed, language, task = (said.get(key) for key in ("no_timestamps_token_id", "language", "task"))
    forced = said.get("forced_decoder_ids") or config.get("forced_decoder_ids") or []
    if start is None or not (languages or forced or untimed is not None):
        return None, []
    between: list[int] = []
    if language is not None:
        if (spoken := languages.get(token_of(language))) is None:
            notes.append(f"language {language!r} is none of its languages: what is heard decides")
        else:
            between.append(spoken)
    if language is not None or task is not None:
        named = "transcribe" if task is None else task
        if named in tasks:
            between.append(tasks[named])
        elif task is not None:
            notes.append(f"task {task!r} is none of its tasks, which are {', '.join(tasks) or 'not named'}")
    elif [place for place, _ in forced] == list(range(1, len(forced) + 1)):
        between += [index for _, index in forced if index is not None]
        if forced and forced[0][1] not in (None, *languages.values()):
            languages = {}  # something else stands in their place
    else:
        notes.append(f"forced_decoder_ids {forced} are not of the places from 1 on: they are left out")
    prompt = [start, *between]
    return prompt if untimed in (None, prompt[-1]) else [*prompt, untimed], sorted(languages.values())


def token_of(language: Any) -> str:
    """A language's token, by its name, its code, or that itself."""
    name = str(language).lower()
    return name if name.startswith("<|") else f"<|{CODES.get(name, name)}|>"
