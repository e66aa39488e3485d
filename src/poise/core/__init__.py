"""The engine-free core: internal states, probe, baselines, and the estimator that an engine holds.

layout = TokenLayout.padded(...)                    # where each rollout's tokens lie
with StateCapture(model, spec).armed(layout) as states: ...   # the policy's own forward pass
features = Features(states.prompt_BH, states.reasoning_BH, layout.entropy_features(...))
credit = estimator.credit(Rollouts(rewards_B, groups_B, features))
...                                                 # policy update with credit.advantages_B
estimator.update(credit)
"""

from poise.core.baselines import BASELINES, NEED_SIBLINGS, READ_STATES, BaselineName
from poise.core.diagnostics import calibration, credit_metrics, prediction_metrics, value_metrics, variance_ratio
from poise.core.estimator import EstimatorConfig, ValueEstimator
from poise.core.features import Features
from poise.core.presets import PRESETS, with_preset
from poise.core.probe import Probe, ProbeConfig, fit_probe
from poise.core.returns import gae, whiten
from poise.core.rollouts import Credit, Rollouts, domain_id, prompt_id
from poise.core.scores import score_weight, squared_score
from poise.core.states import StateCapture, StateSpec, decoder_blocks, resolve_layer
from poise.core.tokens import TokenLayout, token_entropy
from poise.core.tracker import Tracker, TrackerConfig
from poise.core.trees import load_state, map_tensors, save_state

__all__ = [
    "BASELINES",
    "NEED_SIBLINGS",
    "PRESETS",
    "READ_STATES",
    "BaselineName",
    "Credit",
    "EstimatorConfig",
    "Features",
    "Probe",
    "ProbeConfig",
    "Rollouts",
    "StateCapture",
    "StateSpec",
    "TokenLayout",
    "Tracker",
    "TrackerConfig",
    "ValueEstimator",
    "calibration",
    "credit_metrics",
    "decoder_blocks",
    "domain_id",
    "fit_probe",
    "gae",
    "load_state",
    "map_tensors",
    "prediction_metrics",
    "prompt_id",
    "resolve_layer",
    "save_state",
    "score_weight",
    "squared_score",
    "token_entropy",
    "value_metrics",
    "variance_ratio",
    "whiten",
    "with_preset",
]
