"""The forms in which people keep captioned pictures: one file for each, and one line below.

The order matters if the files of one form may be part of another (`Form.settles`): the forms that
settle others come first.
"""

from components.caption_example_gen.sources.form import Form
from components.caption_example_gen.sources.forms.arrow import Arrow
from components.caption_example_gen.sources.forms.caption_files import CaptionFiles
from components.caption_example_gen.sources.forms.caption_folders import CaptionFolders
from components.caption_example_gen.sources.forms.coco import Coco
from components.caption_example_gen.sources.forms.diffusion_db import DiffusionDb
from components.caption_example_gen.sources.forms.image_folder import ImageFolder
from components.caption_example_gen.sources.forms.img2dataset import Img2Dataset
from components.caption_example_gen.sources.forms.keras_folder import KerasFolder
from components.caption_example_gen.sources.forms.label_studio import LabelStudio
from components.caption_example_gen.sources.forms.parquet import Parquet
from components.caption_example_gen.sources.forms.pictures import Pictures
from components.caption_example_gen.sources.forms.repeats import Repeats
from components.caption_example_gen.sources.forms.sd_scripts import SdScripts
from components.caption_example_gen.sources.forms.table import Table
from components.caption_example_gen.sources.forms.tar import Tar
from components.caption_example_gen.sources.forms.url_table import UrlTable

FORMS: tuple[Form, ...] = (
    Img2Dataset(),
    Parquet(),
    Arrow(),
    Tar(),
    ImageFolder(),
    KerasFolder(),
    Coco(),
    SdScripts(),
    DiffusionDb(),
    LabelStudio(),
    Table(),
    Repeats(),
    CaptionFiles(),
    UrlTable(),
    CaptionFolders(),
    Pictures(),
)
