"""Problems of one to three steps as a schoolbook works them, in the language of templates.py.

A paragraph holds the wordings of a question, each ending in "?", then the explanation, and after
"=>" the closing line.

An instruct model explains its sums before anyone fine-tunes it, and so does the base of nano, but
not in the form that the task asks for: these are other scenarios in other words, an answer ends in
"Đáp số: 8 quả" instead of a bare number, and there is no <think>.
"""

LESSONS = """
{A} có {a:5-60} {sweet}, {A} ăn {b:2-40}. {A} còn mấy {sweet}?
Số {sweet} còn lại là {a - b = c}. => {c} {sweet}

{A} có {a:12-90} {fruit}, cho em {b:2-70} {fruit}. {A} còn mấy {fruit}?
Số {fruit} {A} còn là {a - b = c} {fruit}. => {c} {fruit}

Em gấp được {a:5-40} con thuyền giấy, chị gấp được {b:5-40} con.
    Hai chị em gấp được mấy con thuyền giấy?
Số thuyền giấy của hai chị em là {a + b = c} con. => {c} con

Tủ của {A} có {n:2-9} ngăn, mỗi ngăn để {m:2-9} cái áo. Tủ đó có mấy cái áo?
Tủ của {A} có {m x n = c} cái áo. => {c} cái áo

Bình hoa có {a:9-40} bông, {b:2-20} bông đã héo. Bình hoa còn mấy bông tươi?
Số bông còn tươi là {a - b = c} bông. => {c} bông

Cả đội có {a:12-90} vận động viên, xếp thành {k:2-9} hàng đều nhau. Một hàng có mấy vận động viên?
Một hàng có {a / k = c} vận động viên. => {c} vận động viên

{A} tập hát {a:3-20} bài dân ca và {b:3-20} bài thiếu nhi, đã thuộc {d:2-20} bài.
    {A} còn mấy bài chưa thuộc?
Số bài {A} tập là {a + b = c} bài. Số bài chưa thuộc là {c - d = e} bài. => {e} bài

Hộp bút sáp có {n:2-6} lớp, một lớp {m:4-10} cây. {A} làm gãy {d:2-9} cây thì còn mấy cây lành?
Lúc mới mua hộp có {m x n = c} cây bút sáp. Số cây còn lành là {c - d = e} cây. => {e} cây

Bể cá nhà {A} có {a:5-40} con cá vàng, {A} thả vào {b:3-20} con cá bảy màu rồi vớt ra {d:2-20} con.
    Trong bể là mấy con cá?
Sau khi thả thêm, trong bể là {a + b = c} con.
    Sau khi vớt ra, trong bể là {c - d = e} con. => {e} con cá

Ông cắt {a:20-90} mét dây thép thành các đoạn {k:2-9} mét. Ông được mấy đoạn?
Số đoạn dây thép là {a / k = c} đoạn. => {c} đoạn

Một tháp xếp hình có {n:3-9} tầng, tầng nào cũng {m:2-9} khối gỗ. {A} còn thừa {b:2-20} khối.
    {A} có mấy khối gỗ?
Cái tháp dùng hết {m x n = c} khối gỗ. Tính cả phần thừa, {A} có {c + b = d} khối gỗ. => {d} khối gỗ

Bà có {a:12-60} cái chén, bà đem biếu {b:2-20} cái, rồi xếp đều vào {k:2-9} chồng.
    Mỗi chồng mấy cái chén?
Bà giữ lại {a - b = c} cái chén. Mỗi chồng có {c / k = d} cái chén. => {d} cái chén

{A} chụp {a:10-50} tấm ảnh ở biển và {b:10-50} tấm ảnh ở núi. {A} chụp tất cả mấy tấm ảnh?
{A} chụp tất cả {a + b = c} tấm ảnh. => {c} tấm ảnh

Hồ bơi nhỏ dài {m:3-12} mét, {A} bơi {n:2-9} lượt. {A} bơi mấy mét?
Quãng {A} bơi dài {m x n = c} mét. => {c} mét

{A} nặng {a:20-40} ki-lô-gam, {B} nhẹ hơn {A} {b:2-9} ki-lô-gam. Cả hai bạn cân nặng mấy ki-lô-gam?
{B} cân nặng {a - b = c} ki-lô-gam. Cả hai bạn cân nặng {a + c = d} ki-lô-gam. => {d} ki-lô-gam

Đèn lồng đỏ treo {n:2-9} dây, mỗi dây {m:2-9} chiếc, đèn lồng vàng có {b:5-40} chiếc.
    Phố treo mấy chiếc đèn lồng?
Đèn lồng đỏ có {m x n = c} chiếc. Cả phố treo {c + b = d} chiếc đèn lồng. => {d} chiếc

Lọ có {a:20-90} hạt cườm, {A} xâu mỗi vòng {k:3-9} hạt. Xâu hết thì được mấy vòng?
Số vòng {A} xâu được là {a / k = c} vòng. => {c} vòng

Sáng {A} gửi {a:3-30} lá thư, trưa gửi {b:3-30} lá, tối gửi {d:3-30} lá. Cả ngày {A} gửi mấy lá thư?
Sáng và trưa gửi {a + b = c} lá thư. Thêm buổi tối là {c + d = e} lá thư. => {e} lá thư

Tranh ghép có {a:50-100} mảnh. Hôm đầu {A} ghép {b:5-40} mảnh, hôm sau ghép {d:5-40} mảnh.
    Phải ghép mấy mảnh nữa mới xong?
Hai hôm ghép được {b + d = c} mảnh. Phải ghép thêm {a - c = e} mảnh. => {e} mảnh

Một bó có {m:2-12} que tính. {A} dùng {n:2-9} bó, {B} dùng {k:2-9} bó. Hai bạn dùng mấy que tính?
Số bó cả hai bạn dùng là {n + k = c} bó. Số que tính là {m x c = d} que. => {d} que tính

Anh {A} câu {a:4-40} con tôm, gấp {k:2-6} lần số tôm của em. Em câu được mấy con tôm?
Em câu được {a / k = c} con tôm. => {c} con tôm

Em trồng {a:3-20} khóm rau, chị trồng gấp {k:2-6} lần em. Cả nhà có mấy khóm rau?
Chị trồng {a x k = c} khóm rau. Cả nhà có {a + c = d} khóm rau. => {d} khóm rau

Tầng một có {a:5-40} phòng, tầng hai ít hơn {b:2-12} phòng. Toà nhà có mấy phòng?
Tầng hai có {a - b = c} phòng. Toà nhà có {a + c = d} phòng. => {d} phòng

Thùng sơn {a:20-90} lít, thợ quét mỗi ngày {m:2-9} lít, đã quét {n:2-9} ngày.
    Trong thùng còn mấy lít sơn?
Lượng sơn đã quét là {m x n = c} lít. Lượng sơn còn là {a - c = d} lít. => {d} lít

{A} thắp {a:10-40} ngọn nến, gió thổi tắt {b:2-20} ngọn, {A} thắp lại {d:2-12} ngọn.
    Có mấy ngọn nến đang sáng?
Sau cơn gió có {a - b = c} ngọn nến sáng. Thắp lại thì có {c + d = e} ngọn. => {e} ngọn nến

Cô mua {n:2-9} gói khăn giấy giá {m:2-12} nghìn đồng một gói
    và một chai dầu giá {b:5-60} nghìn đồng.
    Cô trả mấy nghìn đồng?
Tiền khăn giấy là {m x n = c} nghìn đồng. Cô trả {c + b = d} nghìn đồng. => {d} nghìn đồng

{A} xem phim hoạt hình {n:2-9} tập, mỗi tập {m:5-12} phút, rồi xem tin tức {b:5-30} phút.
    {A} ngồi xem mấy phút?
Phim hoạt hình chiếu {m x n = c} phút. {A} ngồi xem {c + b = d} phút. => {d} phút

Lớp có {a:20-45} bạn, {b:2-12} bạn đi trực nhật, những bạn kia chia thành {k:2-6} tổ.
    Mỗi tổ mấy bạn?
Số bạn ở lại là {a - b = c} bạn. Mỗi tổ có {c / k = d} bạn. => {d} bạn

Thầy phát {n:2-9} chồng phiếu, mỗi chồng {m:3-12} tờ, cho {k:2-12} nhóm như nhau.
    Nhóm nào cũng nhận mấy tờ phiếu?
Số phiếu thầy phát là {m x n = c} tờ. Nhóm nào cũng nhận {c / k = d} tờ phiếu. => {d} tờ

Ốc sên bò {a:10-60} mét rồi nghỉ, bò tiếp {b:5-30} mét, rồi tụt xuống {d:2-20} mét.
    Ốc sên ở cách chỗ xuất phát mấy mét?
Trước khi tụt, ốc sên bò {a + b = c} mét. Ốc sên ở cách chỗ xuất phát {c - d = e} mét. => {e} mét

Kho của {A} còn {a:40-100} bao xi măng.
    Xe chở đi {n:2-6} chuyến, mỗi chuyến {m:2-9} bao, rồi nhập về {b:5-30} bao.
    Kho có mấy bao?
Xe đã chở đi {m x n = c} bao. Lúc chưa nhập, kho có {a - c = d} bao.
    Nhập xong, kho có {d + b = e} bao. => {e} bao

Vở kịch bán {n:3-9} tập vé, mỗi tập {m:5-12} vé,
    {b:2-20} vé bị trả lại, sau đó bán thêm {d:2-20} vé.
    Vở kịch bán được mấy vé?
Lúc đầu bán {m x n = c} vé. Trừ vé bị trả thì bán {c - b = f} vé.
    Cuối cùng bán được {f + d = e} vé. => {e} vé
""".strip().split("\n\n")
