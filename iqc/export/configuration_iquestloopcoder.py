"""Configuration of the looped decoder for Transformers; field names and defaults of the released model."""

from transformers import PretrainedConfig


class IQuestLoopCoderConfig(PretrainedConfig):
    model_type = "iquestloopcoder"
    num_experts = 0  # no loop has them, but the decoder asks

    def __init__(
        self,
        *,
        vocab_size=76_800,
        hidden_size=5_120,
        intermediate_size=27_648,
        num_hidden_layers=80,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=None,
        max_position_embeddings=8_192,
        rope_theta=500_000.0,
        rope_parameters=None,
        rope_scaling=None,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        loop_num=2,
        loop_window_size=64,
        tie_word_embeddings=False,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        # Transformers 5 and vLLM read base and scaling inside rope_parameters, earlier versions beside it.
        default = {"rope_type": "default", "rope_theta": rope_theta} | (rope_scaling or {})
        self.rope_parameters = rope_parameters or default
        self.rope_theta = self.rope_parameters["rope_theta"]
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.loop_num = loop_num
        self.loop_window_size = loop_window_size
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
