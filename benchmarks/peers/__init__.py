"""sd2rt beside what a user would pick instead: one checkpoint, taking turns.

Each peer is a process of its own, so that none has another's threads, allocator or packages. Those that are
compared are open at the same time and make an image each, round after round, while the others sit idle: what
else the machine does falls on all of them, and a round's ratios are worth more than its times.

    python -m benchmarks.peers --small --python 'openvino*=VENV/bin/python' --python 'optimum*=VENV2/bin/python'

The extra ``export`` has what sd2rt, diffusers and onnxruntime-loop take. optimum-intel and optimum-onnx want an
older transformers, and different versions of optimum, so each has an environment of its own:

    python -m venv VENV && VENV/bin/pip install -r benchmarks/peers/requirements-openvino.txt
    python -m venv VENV2 && VENV2/bin/pip install -r benchmarks/peers/requirements-optimum-onnx.txt

They need neither sd2rt nor each other. A peer whose packages are missing is listed with what was missing.

| file | |
| --- | --- |
| ``catalogue.py`` | the table of peers |
| ``job.py`` | what a peer is told, and what its adapter has to offer |
| ``sd2rt_pipeline.py`` ``diffusers_pipeline.py`` ``unet_loop.py`` | the adapters |
| ``optimum_onnx.py`` ``openvino_pipeline.py`` | those of other environments |
| ``diffusers_call.py`` | an image by a pipeline that is called as diffusers' are |
| ``unet_runners.py`` ``tensorrt_unet.py`` | a UNet by another runtime, within diffusers' loop |
| ``worker.py`` ``client.py`` | a peer's process, and the driver's end of it |
| ``groups.py`` ``contest.py`` | who is open at the same time; turns |
| ``findings.py`` ``images.py`` ``step_clock.py`` | what the turns come to; how far images are apart; when calls end |
| ``site.py`` ``__main__.py`` | the files that peers share; the command line |
"""
