"""The public corpora that the preparation scripts know, by name: address, checksum, licence.

Checksums are those that the publishers state. Where none is known the caller has to bring one (`--sha256`): what
cannot be verified is not unpacked. Not here are FSD50K, a split archive, and OpenAIR, which comes room by room: fetch
and unpack these yourself and give the folder to the scripts.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.download import download, unpack


@dataclass(frozen=True)
class PublicCorpus:
    """One archive.

    Args:
        kind: what it is good for: "music", "rooms" or "noise".
        checksum: `algorithm:hexadecimal`, or empty where none is known.
        artist_from: where a track's artist is named, "tags" or "folder" (`Artist - Title`).
    """

    kind: str
    url: str
    checksum: str
    licence: str
    artist_from: str = "tags"


_FMA = "https://os.unil.cloud.switch.ch/fma/"
_FMA_LICENCE = "Creative Commons, per track: see the FMA metadata"
_JAMENDO = "https://cdn.freesound.org/mtg-jamendo/raw_30s/audio/raw_30s_audio-{:02d}.tar"
_JAMENDO_LICENCE = "Creative Commons, per track: see the MTG-Jamendo metadata; research only"
# The first five of a hundred parts: about 270 h.
_JAMENDO_SHA256 = (
    "c569f4b7264995c06de93eb6c20138d9355274508dde37085ed992fc990d930b",
    "1b079d27127462c9066ed2fa18490303850bc1041fcae55835be3a46d6c965b0",
    "699de4385be7c5b4ad804bf86608868fb2ccdb7cd827abf38cfbd4e8e7dbd0ad",
    "426fc4c849f8d4aaa34e61c213a4f82db219b13d0b68210a4ccfd2da032af6dd",
    "d4188a23140670f6673794a8fb7060aefd97067764ec84db5676847eaa08b668",
)

CORPORA: dict[str, PublicCorpus] = {
    "musdb18-hq": PublicCorpus(
        "music",
        "https://zenodo.org/records/3338373/files/musdb18hq.zip",
        "md5:12d4f2ecd55245a4688754dd76363103",
        "per track, mostly non-commercial: see MUSDB18's track list",
        artist_from="folder",
    ),
    "fma-small": PublicCorpus(
        "music", _FMA + "fma_small.zip", "sha1:ade154f733639d52e35e32f5593efe5be76c6d70", _FMA_LICENCE
    ),
    "fma-medium": PublicCorpus(
        "music", _FMA + "fma_medium.zip", "sha1:c67b69ea232021025fca9231fc1c7c1a063ab50b", _FMA_LICENCE
    ),
    "fma-large": PublicCorpus(
        "music", _FMA + "fma_large.zip", "sha1:497109f4dd721066b5ce5e5f250ec604dc78939e", _FMA_LICENCE
    ),
    "fma-full": PublicCorpus(
        "music", _FMA + "fma_full.zip", "sha1:0f0ace23fbe9ba30ecb7e95f763e435ea802b8ab", _FMA_LICENCE
    ),
    **{
        f"mtg-jamendo-{part:02d}": PublicCorpus("music", _JAMENDO.format(part), f"sha256:{sha256}", _JAMENDO_LICENCE)
        for part, sha256 in enumerate(_JAMENDO_SHA256)
    },
    # 16 kHz: what passes through these rooms loses everything above 8 kHz.
    "rirs-noises": PublicCorpus(
        "rooms",
        "https://www.openslr.org/resources/28/rirs_noises.zip",
        "md5:e6f48e257286e05de56413b4779d8ffb",
        "Apache-2.0",
    ),
    "mit-ir-survey": PublicCorpus(
        "rooms", "https://mcdermottlab.mit.edu/Reverb/IRMAudio/Audio.zip", "", "see the MIT IR survey's page"
    ),
    "echothief": PublicCorpus(
        "rooms",
        "https://www.echothief.com/wp-content/uploads/2016/06/EchoThiefImpulseResponseLibrary.zip",
        "",
        "see EchoThief's page",
    ),
    "but-reverbdb": PublicCorpus(
        "rooms", "http://merlin.fit.vutbr.cz/ReverbDB/BUT_ReverbDB_rel_19_06_RIR-Only.tgz", "", "CC-BY-4.0"
    ),
    "demand-cafeteria": PublicCorpus(
        "noise", "https://zenodo.org/records/1227121/files/PCAFETER_48k.zip", "", "CC-BY-4.0"
    ),
    "demand-restaurant": PublicCorpus(
        "noise", "https://zenodo.org/records/1227121/files/PRESTO_48k.zip", "", "CC-BY-4.0"
    ),
}


def fetch_corpus(
    name: str, kind: str, cache: Path, folder: Path, wanted: Callable[[str], bool], sha256: str = ""
) -> PublicCorpus:
    """Download a corpus into `cache`, verify it, and unpack what is wanted into `folder`, unless that is there.

    Args:
        sha256: the archive's checksum as the caller knows it; needed where the table has none.
    """
    known = [key for key, corpus in CORPORA.items() if corpus.kind == kind]
    if name not in known:
        raise ValueError(f"unknown corpus {name!r} of {kind}; known are {', '.join(known)}")
    corpus = CORPORA[name]
    checksum = f"sha256:{sha256}" if sha256 else corpus.checksum
    if not checksum:
        raise ValueError(f"no checksum of {name} is known: give the SHA-256 of an archive that you trust (--sha256)")
    if not folder.exists():
        archive = cache / f"{name}-{corpus.url.rsplit('/', 1)[-1]}"
        download(corpus.url, archive, checksum)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            target = Path(temporary) / folder.name
            target.mkdir()
            unpack(archive, target, wanted)
            os.replace(target, folder)
    return corpus
