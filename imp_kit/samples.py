"""The sample images that come with the kit; images/SOURCES.md says where each is from."""

from pathlib import Path

from imp_kit.errors import ImageError

_HERE = Path(__file__).parent
# In the wheel they are a folder of the package, in the repository they stand beside it.
FOLDER = next(filter(Path.is_dir, (_HERE / "sample_images", _HERE.parent / "images")), _HERE)
NAMES = ("astronaut.jpg", "bus.png", "camera.jpg", "cat.jpg", "coffee.jpg", "diagram.png", "door.png", "rocket.jpg")


def sample(name: str) -> Path:
    """Path of a sample image, such as "bus.png". Raises ImageError for another name."""
    if name not in NAMES:
        raise ImageError(f"There is no sample image {name!r}. There are {', '.join(NAMES)}.")
    return FOLDER / name
