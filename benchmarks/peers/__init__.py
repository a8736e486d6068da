"""Compare sd2rt with its alternatives ("peers") on one checkpoint, in turns.

Each peer is a separate process, so that peers share no threads, allocator or packages. Compared peers are open at the
same time and generate one image each per round while the others are idle. Other load on the machine then affects all
of them, so a round's ratios are more reliable than its times.

    python -m benchmarks.peers --small --python 'openvino*=VENV/bin/python' --python 'optimum*=VENV2/bin/python'

The extra ``export`` covers sd2rt, diffusers and onnxruntime-loop. optimum-intel and optimum-onnx require an older
transformers and different versions of optimum, so each needs a separate environment:

    python -m venv VENV && VENV/bin/pip install -r benchmarks/peers/requirements-openvino.txt
    python -m venv VENV2 && VENV2/bin/pip install -r benchmarks/peers/requirements-optimum-onnx.txt

They need neither sd2rt nor each other. A peer with missing packages is listed with the names of those packages.

| file | |
| --- | --- |
| ``catalogue.py`` | the table of peers |
| ``job.py`` | a peer's input, and the interface of its adapter |
| ``sd2rt_pipeline.py`` ``diffusers_pipeline.py`` ``unet_loop.py`` | the adapters |
| ``optimum_onnx.py`` ``openvino_pipeline.py`` | adapters that need other environments |
| ``diffusers_call.py`` | images from any pipeline with diffusers' call signature |
| ``unet_runners.py`` ``tensorrt_unet.py`` | the UNet in another runtime, inside diffusers' loop |
| ``worker.py`` ``client.py`` | a peer's process, and its client in the driver |
| ``groups.py`` ``contest.py`` | groups of peers that are open together; the rounds |
| ``peer_results.py`` ``images.py`` ``step_clock.py`` | results and tables; image differences; step times |
| ``site.py`` ``__main__.py`` | the shared checkpoint and bundle; the command line |
"""
