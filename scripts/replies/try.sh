#!/usr/bin/env bash
# Credit on a pretrained model: finetuned with configs/topics, 400 judged replies, vectors of every credit (`scripts/bench_replies.py
# --model`), each steered at one norm of the step and at one KL, 200 fresh replies each; one table. What is done stays. Settings:
#   MODEL    the base                                 lightning_logs/pretrained/SmolLM2-135M-Instruct (scripts/pretrained)
#   CONFIGS  anchor.yaml, evaluate_anchor.yaml, steer.yaml   configs/topics
#   OUT      of everything; an anchor in it is taken  lightning_logs/smollm2-credit
#   NORM     alpha ||V||, with alpha's sign           -0.06 (raises the topics)
#   KL       nats a token, with alpha's sign          -0.02, on held-out text
# Options go to steer, such as --forecasting.responses "$OUT/responses/anchor-attribution.jsonl" (the KL on replies then).
set -euo pipefail
model=${MODEL:-lightning_logs/pretrained/SmolLM2-135M-Instruct}
configs=${CONFIGS:-configs/topics}
out=${OUT:-lightning_logs/smollm2-credit}
same=(--input_dir "$out" --output_dir "$out" --experiment smollm2-credit)
gradsteer() { .venv/bin/python -u -m gradsteer "$@"; }
vectors() {
  PYTHONPATH="$PWD" .venv/bin/python -u scripts/bench_replies.py --model "$out/anchor" \
    --responses "$out/responses/anchor-attribution.jsonl" --directory "$out/credit" --norm="${NORM:--0.06}" --kl="${KL:--0.02}"
}

if [ ! -d "$out/anchor" ]; then
  gradsteer fit --config "$configs/anchor.yaml" --model.model_name_or_path "$model" "${same[@]}"
fi
gradsteer evaluate --config "$configs/evaluate_anchor.yaml" --model.num_samples 4 "${same[@]}" --evaluation.heldout null
vectors
gradsteer steer --config "$configs/steer.yaml" --config "$out/credit/steer.yaml" --input_dir "$out" --output_dir "$out/credit" \
  --experiment smollm2-credit --model.num_samples 2 --data.benign_prompts null --data.harmful_prompts null "$@"
vectors
