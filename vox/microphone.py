"""`Microphone`: a button that records in the reader's browser.

The kernel may run on another machine, so the page records. Its own decoder turns what the recorder made into samples at our rate:
no audio format has to be read here. Browsers hand out the microphone on https and on localhost only, after asking.
"""

import anywidget
import torch
import traitlets
from torch import Tensor

SOURCE = """
const reasons = {NotAllowedError: "it was not allowed", NotFoundError: "there is none"};

async function record(rate) {  // → a function that stops the recording and gives its samples
  if (!navigator.mediaDevices) throw new Error("a page may use it on https or localhost only");
  const stream = await navigator.mediaDevices.getUserMedia({audio: true});
  const recorder = new MediaRecorder(stream), pieces = [];
  recorder.ondataavailable = piece => pieces.push(piece.data);
  const done = new Promise(resolve => recorder.onstop = resolve);
  recorder.start();
  return async () => {
    recorder.stop();
    await done;
    for (const track of stream.getTracks()) track.stop();
    const context = new AudioContext({sampleRate: rate});  // decoding resamples to it
    const sound = await context.decodeAudioData(await new Blob(pieces).arrayBuffer());
    await context.close();
    return sound.getChannelData(0);
  };
}

export default {render({model, el}) {
  const button = document.createElement("button"), note = document.createElement("span");
  button.className = "jupyter-button widget-button";
  note.style.marginLeft = "0.5em";
  note.setAttribute("role", "status");
  el.append(button, note);
  let stop = null;
  const show = () => {
    const samples = model.get("value").byteLength / 4;
    button.textContent = stop ? "Stop" : "Record";
    note.textContent = stop ? "recording …" : model.get("problem") ? `No microphone: ${model.get("problem")}.`
      : samples ? `${(samples / model.get("rate")).toFixed(1)} s recorded` : "";
  };
  button.onclick = async () => {
    button.disabled = true;
    try {
      if (stop) {
        const finish = stop;
        stop = null;
        model.set("value", new DataView((await finish()).slice().buffer));
      } else {
        stop = await record(model.get("rate"));
      }
      model.set("problem", "");
    } catch (error) {
      model.set("problem", reasons[error.name] ?? error.message);
    }
    model.save_changes();
    button.disabled = false;
    show();
  };
  model.on("change:value", show);
  show();
}};
"""


class Microphone(anywidget.AnyWidget):
    """A button "Record", then "Stop". `value`: the samples as bytes of float32 at `rate` Hz, empty before; `problem`: why there are none.

    >>> microphone = Microphone(rate=16000)
    >>> microphone  # record, and then
    >>> samples(microphone.value)
    """

    _esm = SOURCE
    description = traitlets.Unicode("microphone")
    rate = traitlets.Int(16000).tag(sync=True)
    value = traitlets.CBytes(b"").tag(sync=True)  # from the page it comes as a memoryview
    problem = traitlets.Unicode("").tag(sync=True)


def samples(value: bytes) -> Tensor:
    """The value of a Microphone → what was recorded, [N] float32 in [-1, 1]; N = 0 before."""
    return torch.frombuffer(bytearray(value), dtype=torch.float32) if value else torch.zeros(0)
