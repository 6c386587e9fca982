"""How much is tried in each run of the tests, at the least: tests hold it, and `docs/durability.md` states it."""

COUNTS = {
    "states that a power cut can leave": 25_000,
    "kills at an operation": 600,
    "kills at random moments": 150,
    "operations that the system refuses": 600,
    "moments at which a disk is copied": 25,
    "bits that are flipped": 3_000,
    "lengths that a file is cut to": 700,
}
