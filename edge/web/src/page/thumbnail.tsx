/** A picture of the gallery, small. */
import { useEffect, useState } from "preact/hooks";
import { thumbnailUrl } from "./runtime.js";

export async function fetchThumbnail(gallery: string, id: string, key: string): Promise<Blob> {
  const response = await fetch(thumbnailUrl(gallery, id), key ? { headers: { authorization: `Bearer ${key}` } } : {});
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  return response.blob();
}

export function Thumbnail({ gallery, id, keyText, alt }: { gallery: string; id: string; keyText: string; alt: string }) {
  const [source, setSource] = useState(keyText ? "" : thumbnailUrl(gallery, id));
  const [missing, setMissing] = useState(false);
  useEffect(() => {
    setMissing(false);
    if (!keyText) return setSource(thumbnailUrl(gallery, id)); // an <img> cannot send a key, so a key needs a fetch
    let url = "";
    let gone = false;
    fetchThumbnail(gallery, id, keyText).then(
      (blob) => gone || setSource((url = URL.createObjectURL(blob))),
      () => gone || setMissing(true),
    );
    return () => {
      gone = true;
      if (url) URL.revokeObjectURL(url);
    };
  }, [gallery, id, keyText]);
  if (missing || !source) return <span class="blank" />;
  return <img src={source} alt={alt} loading="lazy" decoding="async" onError={() => setMissing(true)} />;
}
