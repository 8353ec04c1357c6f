"""First stage: the feature map of a picture; and the ground below: weights and pictures are the recorded ones."""

import hashlib

import torch
from fixtures.recorded import digest, picture_bytes
from fixtures.stages import STATES


def test_weights_are_the_recorded_ones(recording):
    assert digest(recording.weights) == recording.facts["weights_sha256"]


def test_pictures_are_the_recorded_ones(recording):
    pictures = [picture for case in recording.cases.values() for picture in case.get("images", [])]
    digests = {f"{picture['name']}@{picture['h']}x{picture['w']}": picture for picture in pictures}
    known = digests.keys() & recording.facts["image_sha256"].keys()
    assert len(known) >= 10
    for name in known:
        picture = digests[name]
        content = picture_bytes(recording.seed, picture["name"], picture["h"], picture["w"])
        assert hashlib.sha256(content.tobytes()).hexdigest() == recording.facts["image_sha256"][name], name


def test_feature_map_equals_the_recorded_one(recording, recorded_model):
    with torch.no_grad():
        features = recorded_model.encoder.embed_images(recording.pictures("c01_basic256"))
    assert recording.error("c01_basic256/resnet", features) < STATES
