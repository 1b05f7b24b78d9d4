"""Make a small text-like dataset: which of two topics is a bag of words about?

Writes train.jsonl (some labels wrong), validation.jsonl and test.jsonl beside
this file. The words come from the standard library's own documentation.

    python make_data.py [--to DIR]
"""

import argparse
import json
import random
import re
from pathlib import Path
from pydoc_data.topics import topics

FIRST, SECOND = ("class", "function", "compound"), ("formatstrings", "strings", "numbers")
VOCABULARY = 96


def sentences(names: tuple[str, ...]) -> list[list[str]]:
    """Passages of 25 words from the given topics."""
    words = [
        w for name in names if name in topics for w in re.findall(r"[a-z]+", topics[name].lower())
    ]
    return [words[i : i + 25] for i in range(0, len(words) - 25, 25)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the data of this example.")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent)
    folder: Path = parser.parse_args().to
    rng = random.Random(0)
    passages = [(s, "code") for s in sentences(FIRST)] + [(s, "text") for s in sentences(SECOND)]
    rng.shuffle(passages)
    counts: dict[str, int] = {}
    for words, _ in passages:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    vocabulary = sorted(counts, key=lambda w: (-counts[w], w))[:VOCABULARY]
    held = len(passages) // 5
    parts = {
        "test": passages[:held],
        "validation": passages[held : 2 * held],
        "train": passages[2 * held :],
    }
    for part, rows in parts.items():
        with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            for words, topic in rows:
                if part == "train" and rng.random() < 0.2:
                    topic = "code" if topic == "text" else "text"
                bag = [words.count(word) for word in vocabulary]
                row = {"bag": bag, "topic": topic, "words": " ".join(words)}
                file.write(json.dumps(row) + "\n")
    print({part: len(rows) for part, rows in parts.items()})


if __name__ == "__main__":
    main()
