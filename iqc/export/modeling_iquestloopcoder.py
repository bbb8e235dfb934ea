"""The looped decoder for Transformers: a shell around the decoder, which holds the mathematics.

Simple and exact rather than fast: there is no key/value cache, so generate() reads the whole text again for every
token. For serving use vLLM, which knows this architecture. Rows may be padded on either side, given the attention mask.
"""

from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from iqc.export.configuration_iquestloopcoder import IQuestLoopCoderConfig
from iqc.kernels.documents import Documents
from iqc.model.decoder import Body


class IQuestLoopCoderForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = IQuestLoopCoderConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["Block"]  # noqa: RUF012 - the form that Transformers reads

    def __init__(self, config):
        super().__init__(config)
        self.model = Body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        """For a model made from a configuration alone; a loaded one has its weights."""
        if module in set(self.model.gate_projections):
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, 2.0)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(self, input_ids, attention_mask=None, labels=None, logits_to_keep=0, **kwargs):
        """logits [B, T, V] (of the last `logits_to_keep` tokens when not 0) and, with labels [B, T] (-100: ignore), the
        mean next-token loss."""
        if attention_mask is None or bool(attention_mask.all()):
            documents = Documents.from_lengths(None, *input_ids.shape, device=input_ids.device)
        else:
            documents = Documents.from_mask(attention_mask.bool())
        hidden = self.model(input_ids, documents)
        logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs):
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}


__all__ = ["IQuestLoopCoderForCausalLM"]
