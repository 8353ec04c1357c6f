"""What a stranger does with folders of several tasks and of one: each pipeline by its name, or by none."""


def main(request: dict) -> dict:
    """Ask each pipeline of a folder; `request` has `folder`, `single` (a folder of one task) and `image`."""
    import torch
    import transformers
    from transformers import pipeline

    torch.set_num_threads(1)
    common = {"trust_remote_code": True, "device": "cpu"}
    image, answers = request["image"], {}

    def ask(name: str, *given, **asked):
        pipe = pipeline(name, model=request["folder"], **common)
        answers[name] = pipe(*given, **asked)
        return type(pipe).__module__

    modules = [
        ask("image-to-text", image, max_length=8),
        ask("visual-question-answering", image=image, question="what red", max_new_tokens=4, top_k=2),
        ask("zero-shot-object-detection", image, candidate_labels=["red", "what"]),
        ask("zero-shot-image-classification", image, candidate_labels=["red", "what", "hat"]),
        ask("summarization", "red what", max_length=8),
        ask("text-classification", "red what", task="sst2"),
    ]
    single = pipeline(model=request["single"], **common)
    answers["single"] = single(image=image, question="what red", candidate_answers=["red", "what"])
    return {"version": transformers.__version__, "modules": modules, "name": single.pipeline_name, "answers": answers}
