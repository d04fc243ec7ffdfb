import torch

from tests.model.tiny import SENTENCES, padded, posterior_by_hand, tiny_model


def test_encoder_is_the_lstm_equations_up_to_the_end_of_the_sentence():
    model = tiny_model()
    mean, log_variance = model.encoder(*padded(SENTENCES))
    for i, sentence in enumerate(SENTENCES):
        expected = posterior_by_hand(model, sentence)
        torch.testing.assert_close(torch.cat([mean[i], log_variance[i]]), expected, rtol=0, atol=1e-14)
