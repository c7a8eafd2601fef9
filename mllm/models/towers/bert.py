"""BERT, the text tower of the shared space."""

from __future__ import annotations

from types import MappingProxyType

from transformers import BertConfig, BertModel

from mllm.models.towers.base import TextTower


class BertTower(TextTower):
    """BERT without its pooler (Devlin et al., 2019); also sentence encoders such as MiniLM."""

    config_class = BertConfig
    encoder_class = BertModel
    encoder_options = MappingProxyType({"add_pooling_layer": False})
