/** The camera, the rear one where there are two. */
import { useEffect, useRef, useState } from "preact/hooks";
import { CameraError } from "./problems.js";
import { strings } from "./strings.js";

export function Camera({ onPicture, onError }: { onPicture: (picture: Blob) => void; onError: (error: unknown) => void }) {
  const video = useRef<HTMLVideoElement>(null);
  const [ready, setReady] = useState(false);
  useEffect(() => {
    let stream: MediaStream | undefined;
    let gone = false;
    openCamera()
      .then(async (opened) => {
        stream = opened;
        if (gone) return stop(opened);
        video.current!.srcObject = opened;
        await video.current!.play();
        setReady(true);
      })
      .catch((error: unknown) => gone || onError(error));
    return () => {
      gone = true;
      if (stream) stop(stream);
    };
  }, []);

  const take = () => {
    const { videoWidth, videoHeight } = video.current!;
    const canvas = new OffscreenCanvas(videoWidth, videoHeight);
    canvas.getContext("2d")!.drawImage(video.current!, 0, 0);
    canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 }).then(onPicture, onError);
  };
  return (
    <div class="camera">
      <div class="frame"><video ref={video} playsInline muted aria-label={strings.viewfinder} /></div>
      <button type="button" class="primary" disabled={!ready} onClick={take}>{strings.shutter}</button>
    </div>
  );
}

async function openCamera(): Promise<MediaStream> {
  const { problems } = strings;
  if (!navigator.mediaDevices?.getUserMedia) throw new CameraError(problems.cameraInsecure);
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { facingMode: { ideal: "environment" } }, audio: false });
  } catch (error) {
    const name = error instanceof DOMException ? error.name : "";
    if (name === "NotAllowedError" || name === "SecurityError") throw new CameraError(problems.cameraDenied);
    if (name === "NotFoundError" || name === "OverconstrainedError") throw new CameraError(problems.cameraMissing);
    throw new CameraError(problems.cameraBusy);
  }
}

function stop(stream: MediaStream): void {
  for (const track of stream.getTracks()) track.stop();
}
