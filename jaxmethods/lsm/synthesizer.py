r"""A small speech synthesizer: a source of pulses and noise, filtered by the shape of a mouth.

A word is a string of phonemes, a phoneme a row of `PHONEMES`: three formants, how much of it is
voiced, how much is noise and where the noise lies. In frames of 25 ms, 5 ms apart,

    y = sum of frames, DFT^-1( V(f) |H_v(f)| + N(f) |H_n(f)| )

where V and N are the spectra of the pulse train and of white noise, H_v has a resonance at each
formant and falls by 12 dB an octave, and H_n is a bump. Voices differ in pitch, length of the vocal
tract (which scales formants), breath and speed. It sounds like a robot, and every number is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RATE = 16_000
FRAME, HOP, SIZE = 400, 80, 512
BANDWIDTHS = np.array([80.0, 110.0, 160.0])


class Phoneme(NamedTuple):
    """How a sound is made."""

    formants: tuple[float, float, float]
    """Hz."""
    voiced: float
    """Loudness of the pulses."""
    noise: float
    """Loudness of the noise."""
    center: float
    """Hz: where the noise lies."""
    spread: float
    """Hz."""
    seconds: float
    closed: float = 0.0
    """Seconds of silence before it: a stop."""


def _vowel(first: float, second: float, third: float, seconds: float = 0.11) -> Phoneme:
    return Phoneme((first, second, third), 1.0, 0.0, 1000, 1000, seconds)


def _noise(center: float, spread: float, loud: float, voiced: float = 0.0) -> Phoneme:
    return Phoneme((300, 1500, 2500), voiced, loud, center, spread, 0.09)


def _stop(center: float, voiced: float, locus: float) -> Phoneme:
    return Phoneme((250, locus, 2500), voiced, 0.7, center, 900, 0.03, closed=0.045)


PHONEMES: dict[str, Phoneme] = {
    "i": _vowel(280, 2250, 2900),
    "I": _vowel(400, 1950, 2550, 0.08),
    "e": _vowel(550, 1800, 2500, 0.09),
    "a": _vowel(720, 1650, 2450),
    "A": _vowel(740, 1150, 2450),
    "o": _vowel(500, 900, 2400),
    "u": _vowel(310, 900, 2250),
    "U": _vowel(440, 1050, 2250, 0.08),
    "V": _vowel(620, 1250, 2400, 0.08),
    "R": _vowel(480, 1350, 1700),
    "m": Phoneme((250, 1000, 2200), 0.45, 0, 1000, 1000, 0.07),
    "n": Phoneme((250, 1500, 2500), 0.45, 0, 1000, 1000, 0.07),
    "N": Phoneme((250, 1900, 2700), 0.45, 0, 1000, 1000, 0.08),
    "l": Phoneme((350, 1100, 2800), 0.6, 0, 1000, 1000, 0.07),
    "r": Phoneme((380, 1200, 1600), 0.6, 0, 1000, 1000, 0.07),
    "w": Phoneme((300, 700, 2200), 0.6, 0, 1000, 1000, 0.06),
    "y": Phoneme((280, 2200, 3000), 0.6, 0, 1000, 1000, 0.06),
    "s": _noise(6200, 1400, 0.5),
    "z": _noise(6000, 1400, 0.3, 0.35),
    "S": _noise(3200, 900, 0.6),
    "f": _noise(4500, 2600, 0.2),
    "v": _noise(4200, 2600, 0.1, 0.4),
    "T": _noise(5400, 2200, 0.15),
    "D": _noise(5000, 2200, 0.08, 0.4),
    "h": _noise(1500, 1200, 0.3),
    "p": _stop(900, 0.0, 800),
    "b": _stop(900, 0.4, 800),
    "t": _stop(4200, 0.0, 1800),
    "d": _stop(4000, 0.4, 1800),
    "k": _stop(2200, 0.0, 2200),
    "g": _stop(2100, 0.4, 2200),
    " ": Phoneme((500, 1500, 2500), 0, 0, 1000, 1000, 0.03),
}
"""Letter -> sound. Affricates and diphthongs are written as two."""

_SAID = """
play=pleI some=sVm jazz=dzaz rock=rAk folk=fok soul=sol blues=bluz opera=ApRa i=AI want=wAnt
to=tu hear=hIR put=pUt on=An a=V song=sAN will=wIl it=It rain=reIn in=In paris=perIs
london=lVndVn rome=rom oslo=Azlo berlin=bRlIn madrid=mVdrId how=haU is=Iz the=DV weather=weDR
cold=kold today=tVdeI turn=tRn light=lAIt kitchen=kItSIn garden=gArdVn bedroom=bedrum hall=hol
garage=gRAz office=AfIs make=meIk bright=brAIt too=tu dark=dArk wake=weIk me=mi at=at five=fAIv
six=sIks seven=sevVn eight=eIt nine=nAIn ten=ten set=set an=an alarm=VlArm for=for have=hav
get=get up=Vp call=kol now=naU anna=anV peter=pitR mary=meri tom=tAm david=deIvId lucy=lusi
please=pliz ring=rIN must=mVst talk=tok order=ordR pizza=pitsV coffee=kofi bread=bred milk=mIlk
salad=salVd soup=sup one=wVn we=wi need=nid more=mor thank=TaNk you=yu that=Dat great=greIt
this=DIs awful=ofUl am=am angry=aNgri
"""
PRONUNCIATIONS = {
    word: sounds for word, _, sounds in (pair.partition("=") for pair in _SAID.split())
}
SYMBOLS = "".join(PHONEMES)
"""Every sound once; a space between words is one of them."""


class Voice(NamedTuple):
    """Who speaks."""

    pitch: float
    """Hz."""
    tract: float
    """Formants are multiplied by it."""
    breath: float
    """Noise beside the pulses."""
    speed: float


TRAINED = (
    Voice(110, 0.95, 0.03, 1.0),
    Voice(135, 1.0, 0.06, 1.1),
    Voice(95, 0.9, 0.02, 0.95),
    Voice(210, 1.12, 0.05, 1.05),
    Voice(180, 1.08, 0.1, 1.15),
    Voice(240, 1.18, 0.04, 1.0),
)
UNSEEN = (Voice(122, 0.93, 0.08, 1.12), Voice(195, 1.15, 0.07, 0.97))


def pronounce(text: str) -> str:
    """The sounds of a text, a letter each, with a space between words.

    Raises:
        ValueError: a word that has no pronunciation.
    """
    words = text.split()
    missing = [word for word in words if word not in PRONUNCIATIONS]
    if missing:
        raise ValueError(f"text: {missing[0]!r} has no pronunciation")
    return " ".join(PRONUNCIATIONS[word] for word in words)


class Said(NamedTuple):
    """A text that was said."""

    wave: np.ndarray
    """[n] float32, at most 0.5 loud."""
    sounds: np.ndarray
    """[n / 80] int32: which sound every 5 ms are a part of, its place in `SYMBOLS`."""


def speak(text: str, voice: Voice, rng: np.random.Generator, noise_db: float | None = None) -> Said:
    """Says a text.

    Args:
        text: words of `PRONUNCIATIONS`.
        voice: who speaks.
        rng: for lengths, pitch and noise.
        noise_db: signal over background noise; None: none.

    Returns:
        Samples, and what is said when.
    """
    tracks, sounds = _tracks(pronounce(text), voice, rng)  # [F, 7], [F]
    samples = len(tracks) * HOP
    pulses, noise = _sources(samples, voice, rng)
    frames = _frames(pulses) * tracks[:, 3:4], _frames(noise)
    frequencies = np.arange(SIZE // 2 + 1) * RATE / SIZE  # [K]
    spectra = [np.fft.rfft(one, SIZE, axis=1) for one in frames]
    breath = voice.breath * tracks[:, 3:4]
    resonant = _resonances(tracks[:, :3], frequencies)
    hiss = tracks[:, 4:5] * np.exp(-0.5 * ((frequencies - tracks[:, 5:6]) / tracks[:, 6:7]) ** 2)
    spoken = spectra[0] * resonant + spectra[1] * (hiss + breath * resonant)
    wave = _overlap(np.fft.irfft(spoken, SIZE, axis=1), samples)
    wave = 0.5 * wave / max(np.abs(wave).max(), 1e-9)
    if noise_db is not None:
        background = rng.standard_normal(len(wave))
        background = np.convolve(background, [0.5, 0.3, 0.2], "same")
        power = np.sqrt(np.mean(wave**2) / np.mean(background**2))
        wave = wave + background * power * 10 ** (-noise_db / 20)
        wave = 0.5 * wave / np.abs(wave).max()
    return Said(wave.astype(np.float32), sounds)


def _tracks(sounds: str, voice: Voice, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Formants, voicing, noise and its place in each frame [F, 7], smoothed over 25 ms, and which
    sound it is of [F]."""
    rows: list[list[float]] = []
    numbers: list[int] = []
    for sound in f" {sounds} ":
        phoneme = PHONEMES[sound]
        formants = [voice.tract * one for one in phoneme.formants]
        length = phoneme.seconds * rng.uniform(0.85, 1.2) / voice.speed
        closed = [*formants, 0.0, 0.0, phoneme.center, phoneme.spread]
        opened = [*formants, phoneme.voiced, phoneme.noise, phoneme.center, phoneme.spread]
        rows += [closed] * round(phoneme.closed / voice.speed * RATE / HOP)
        rows += [opened] * max(1, round(length * RATE / HOP))
        numbers += [SYMBOLS.index(sound)] * (len(rows) - len(numbers))
    tracks = np.asarray(rows)
    padded = np.pad(tracks, ((2, 2), (0, 0)), mode="edge")
    smooth = np.mean([padded[shift : shift + len(tracks)] for shift in range(5)], axis=0)
    return smooth, np.asarray(numbers, np.int32)


def _sources(samples: int, voice: Voice, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pulses at a pitch that falls and trembles, and white noise, [samples] each."""
    time = np.arange(samples) / max(samples, 1)
    tremble = np.interp(time, np.linspace(0, 1, 8), rng.normal(0, 0.03, 8))
    phase = np.cumsum(voice.pitch * (1.1 - 0.2 * time + tremble) / RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0) * 20
    return pulses, rng.standard_normal(samples) * 0.5


def _frames(signal: np.ndarray) -> np.ndarray:
    """Windowed pieces [F, 400] of a signal, one a hop."""
    padded = np.pad(signal, (0, FRAME))
    places = np.arange(len(signal) // HOP)[:, None] * HOP + np.arange(FRAME)
    return padded[places] * np.hanning(FRAME)


def _resonances(formants: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """|H_v|, [F, K]."""
    apart = (frequencies[None, :, None] - formants[:, None, :]) / BANDWIDTHS
    peaks = np.sum(1 / (1 + apart**2) * np.array([1.0, 0.7, 0.4]), axis=2) + 0.02
    return peaks / (1 + (frequencies / 900) ** 2) ** 0.5


def _overlap(frames: np.ndarray, samples: int) -> np.ndarray:
    """The sum of frames, one hop apart."""
    wave = np.zeros(samples + SIZE)
    places = np.arange(len(frames))[:, None] * HOP + np.arange(SIZE)
    np.add.at(wave, places, frames)
    return wave[:samples]
