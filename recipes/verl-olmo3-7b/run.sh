#!/usr/bin/env bash
# POISE on OLMo-3-7B, one node of eight GPUs, FSDP2 and vLLM. See README.md; any argument is a further override.
set -euo pipefail
: "${TRAIN:?verl parquet file of training prompts}" "${TEST:?verl parquet file of held-out prompts}"

poise-verl \
    algorithm.adv_estimator=poise poise.preset=paper \
    poise.layer=7 poise.window=32 poise.capacity=4096 \
    'poise.probe.clip=[0,1]' poise.probe.alpha=1000 poise.probe.prompt_components=16 poise.probe.reasoning_components=128 \
    data.train_files="$TRAIN" data.val_files="$TEST" \
    data.train_batch_size=256 data.max_prompt_length=2048 data.max_response_length=8192 \
    data.filter_overlong_prompts=True data.truncation=error \
    actor_rollout_ref.model.path="${MODEL:-allenai/Olmo-3-7B-Think-SFT}" \
    actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=12288 \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
    actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=24576 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.optim.lr_warmup_steps=10 \
    actor_rollout_ref.actor.optim.weight_decay=0.01 \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.8 \
    actor_rollout_ref.rollout.temperature=1.0 actor_rollout_ref.rollout.top_p=1.0 \
    actor_rollout_ref.rollout.val_kwargs.do_sample=True \
    actor_rollout_ref.rollout.val_kwargs.temperature=0.6 \
    actor_rollout_ref.rollout.val_kwargs.top_p=0.95 \
    actor_rollout_ref.rollout.val_kwargs.n=8 \
    reward.custom_reward_function.path=pkg://poise.verl.reward \
    reward.custom_reward_function.name=compute_score \
    +reward.custom_reward_function.reward_kwargs.reward=math \
    trainer.n_gpus_per_node=8 trainer.nnodes="${NODES:-1}" \
    trainer.project_name=poise trainer.experiment_name=olmo3-7b \
    trainer.save_freq=20 trainer.test_freq=20 trainer.max_actor_ckpt_to_keep=3 \
    trainer.total_epochs=2 \
    "$@"
