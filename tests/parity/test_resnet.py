"""First stage: the feature map of an image; and the ground below: weights and images are the recorded ones."""

import hashlib

import torch
from fixtures.recorded import digest, image_bytes
from fixtures.stages import STATES


def test_weights_are_the_recorded_ones(recording):
    assert digest(recording.weights) == recording.facts["weights_sha256"]


def test_images_are_the_recorded_ones(recording):
    images = [image for case in recording.cases.values() for image in case.get("images", [])]
    digests = {f"{image['name']}@{image['h']}x{image['w']}": image for image in images}
    known = digests.keys() & recording.facts["image_sha256"].keys()
    assert len(known) >= 10
    for name in known:
        image = digests[name]
        content = image_bytes(recording.seed, image["name"], image["h"], image["w"])
        assert hashlib.sha256(content.tobytes()).hexdigest() == recording.facts["image_sha256"][name], name


def test_feature_map_equals_the_recorded_one(recording, recorded_model):
    with torch.no_grad():
        features = recorded_model.encoder.embed_images(recording.images("c01_basic256"))
    assert recording.error("c01_basic256/resnet", features) < STATES
