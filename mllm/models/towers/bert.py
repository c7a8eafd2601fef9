"""Text towers of the shared space: BERT and XLM-RoBERTa."""

from __future__ import annotations

from types import MappingProxyType

from transformers import BertConfig, BertModel, PreTrainedConfig, XLMRobertaConfig, XLMRobertaModel

from mllm.models.towers.base import TextTower


class BertTower(TextTower):
    """BERT without its pooler (Devlin et al., 2019); also sentence encoders such as MiniLM."""

    config_class = BertConfig
    encoder_class = BertModel
    encoder_options = MappingProxyType({"add_pooling_layer": False})


class XlmRobertaTower(TextTower):
    """XLM-RoBERTa (Conneau et al., 2020); also multilingual sentence encoders such as multilingual-e5."""

    config_class = XLMRobertaConfig
    encoder_class = XLMRobertaModel
    encoder_options = MappingProxyType({"add_pooling_layer": False})

    @classmethod
    def longest(cls, config: PreTrainedConfig) -> int:
        return config.max_position_embeddings - config.pad_token_id - 1  # positions are counted from there
