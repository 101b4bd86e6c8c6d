// A button that sends one picture to Python, made smaller here where it is a camera's, and keeps nothing.

const LONGEST = 1600;

async function smaller(file) {
  if (file.size < 2e6) return file.arrayBuffer();
  const picture = await createImageBitmap(file);
  const scale = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(picture.width * scale);
  canvas.height = Math.round(picture.height * scale);
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return blob.arrayBuffer();
}

function render({ model, el }) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "reid-file";
  button.textContent = model.get("label");
  const input = document.createElement("input");
  input.type = "file";
  input.accept = "image/*";
  input.hidden = true;
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    const file = input.files[0];
    input.value = "";
    // what is no picture is sent as it is: Python says what is wrong with it
    if (file) model.send({ event: "file" }, undefined, [await smaller(file).catch(() => file.arrayBuffer())]);
  });
  el.append(button, input);
}

export default { render };
