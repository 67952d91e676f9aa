"""HEIC pictures of 80 x 48 pixels, as no package of the tests writes them: red left, green above blue right.

`rotated` lies on its side by its EXIF orientation, `alpha` is transparent where it is red.
"""

import base64
import struct

PLAIN = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004fZDn*}000000000XXk=`10000000000aA{+700000000000000000000B57=I"
    "V*mgE07O6l0RRC200001p#T8@00000006WA001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t000010002}"
    "X>f9I0002pX>en20001XXm(>m0RwOV0058x000009`FGC{rLC*01pFT0096PKmiN^|NjGU00093kN^M!000939=ZZRVE_RDDnbDP"
    "18@KU0|1Z!00RI30{|YND1il*>g1-mxCm%4AOHXZ10VnZ0{|gn00967L;=Bb!HEC>025<xY;ta6Y<K_x01W^JfB*mh6lrsCWdHyG"
    "00000Pyhe`KmY&$C}V74Z~y=RPyhe`0RR91FaQ7m0RR91000000{{R2@Bjb+0ssI25O8UDX#fBK00RgJ2mk;87-?{AVE_OC00000"
    "0RRC7fdT^sga7~lylrG*bN~PVuqXkq1~h(fi7tFE^&n6G|BqMpU)>RY^CS-?fI9R<-~56<|2<kL-gk{p@+-et<Or{Qicwhw=ug3R"
    "CQ+W257sBG$1#wtgt2zXA_ezvvL875i}3$|G_pVU8}9EIptw&isQ;QEly9;s;bUEBxmVWmHtV3{D*}XoMAqsv-?=hrdQD+Vy!3g|"
    "IRBfYglX0#)9InlqqU{R6uUn(A?GxHsfb5<&`((Q5iA<ZbN"
)
ROTATED = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0005VZDn*}000000000XXk=`10000000000aA{+700000000000000000000G-+&a"
    "V*mgE07O6l0ssL300001>;M4(00000006WA0ssI200N)@0RR9100000Bme*aIB98aW&i*H00062000$fZf0cy000000RRAKc4ILB"
    "0000LX>Mj^0ssI300IC2MR;ju000004sdC7Z2$lO00031009SSaB^?}008D`aAR)(004Gqc4I>U18@KU0FVFx0000U@BsY%`1k+-"
    "4+CHT0RR|40Sp2E{{wIU00RJ!0009300RIXx&lC90096hLID8-Z~y=U0FVFx0{{R603M(yfd!W8<fgf}2xu@M00096AOHXZ03l)k"
    "0RRR>0l{;@i2wiq6Ju{|a&BX6cmM$a4FCp!0000KX>)L8000000000`0000$0000eV{Bn?0000`000010000m000010000000002"
    "|NsB+000020000GaA|mH000000|*ER00009X>xCL0{{R38EJ5BVE_OC000000RRC8fdT^sgoXeB02*m>Wo7^X0000001jhhb7KGk"
    "009620002sZDe6|00026C;_hqG=6Z2E_^TbAW#4Qk5~3z-4TBCBo8HkI`l-}{DMFKJz6N<ca2Z-E5BLf2(NvLQCS7(Pr-I3QJ$6$"
    ")+epUF_5i<v3AKK1@~{VA2|Ap@c)1`vOo75?(Z0&xKA#q|C%6_Z?Y=kV_j&uSJv`2>!9N+0)&7>*6K6gxiV>bO<_yC^m)-Z|C^(P"
    "Y1Spv>7mb~wWY=syFWA`=QMt)h(~(RPgwR5EE>yn00006MR;ju002!*04e|g00;m90TKWM0000100sa600000"
)
ALPHA = base64.b85decode(
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0007OZDn*}000000000XXk=`10000000000aA{+700000000000000000000G-+&a"
    "V*mgE07O6l0ssL300002j{pGx00000006WA0ssI200Tn+0RR9100001b^rhXIB98aW&i*H00062000$fZf0cy000000RRAKc4ILB"
    "0000LX>Mj^0ssI200IC2Xm(>U000004sdC7Z2$lO0003100F9LaB^?}00Dw&aAR)(004Gqc4I>U18@KU0FVFx0000U@BsY%`1k+-"
    "4+CHT0RR|40Sp2E{{wIU00RJ!0009300RIXx&lC90096hLID8-Z~y=U0FVFx0{{R603M(yfd!W8<fgf}2xu@M00096AOHXZ03l)k"
    "0RRR>0l{;@i2wiq6Ju{|a&BX6cmM$a4FCp!0000KX>)L8000000000`0000$0000eV{Bn?0000`000010000m000010000000002"
    "|NsB+000020000GaA|mH000000|*ER0001RXm(>m0R#vD005u(000009`FGC{P_3)01pFT0096OKmiN^|NjIC00093pZEX(0{{RX"
    "x&lC90096cLID8;2mk;B0H62(00RI39>Agm7F(;5n&!ZO000bt00093gkk^z00u+>!E?ch0000EaA|mH000000SEv904HH}ctZdH"
    "004DzZaQsnWoJ5QWp-maGB7bUI$?EqX=FMv00000AZc)IVE_OC000000ssL8fdT^sga85sh64wPga7~l8fkK6W&i*H000004q<h8"
    "YybiP0RRC200J^?WMOmw006Kk0j~x$esGB{d@uDNPyhdqSN31s5q|R|4<&#)^hDqMf<ON~S}5LkjZg9`zggr6uYHP9Sq11%!FDE5"
    "o|X^RC#}aZkgbHVcF7_I_iwTvIQon5|9~{IKldB%?--!CPcEqcnjn;KvMS+YU1+&i*77#%pyMk7gn&fW>NDTDGHH5EVN1O9dC@rk"
    "o1=tj)+N*Fq0ghWrN$JyKQtldG=8awM|#jtSoRSt8q0J500D9+0j>;aMKrYw;eX*Rwp6hh2LF;MgNwFT>TNc4W#e$+JH##Od6|<-"
    "CalO?cotiNd=bNKT9eRfb<dvY)Ebf<dY<{u{%9<^%aNv~rV_AfdjLz~9pC}1+SQ{y_ZsY@d-wD)XVzPzR9<x?I}<ANV9ZJ)-2tDz"
    "fk91c+nh*2{q1Wa(63EafrP9791-3B@U-j!T_`Q!SKk)V1g^_VYF4zXA)a66+~k24pjO!yGGbC^s0aD8WF8>pnq#>ViY|&i0*NB8"
    "E|ug!NKb4kua-O|lCIz0Vvrzs{@=aBA%Bs8gpdhLa(YVR9L~Zk#vep*YB=C1G;>%!rto-flG8sW;pn}f^$r+Dm+?34)CD-|?kA%u"
    "Kxn5N;|yduZB3?rQQ<7fsBj!M?;w6N;LUpRb+)&hGq^{sf9k(kg{$=W!GBs<zY?!dmOOdRe7FqxQ@GG2%mx8dg`3jOB^1E^7sgMD"
    "$u^pQqw(d0ZU"
)


def claim_size(data: bytes, width: int, height: int) -> bytes:
    """Return a HEIC or AVIF file with another size in its header (`ispe`)."""
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">II", width, height) + data[place + 8 :]
