"""What the base model of nano knows of the world: sentences, small problems, facts and words.

corpus.py draws from these tables and fills the slots in braces:

  {A} {B} {F} {P}    two names, a relative of A's, a place
  {t}                a counted thing: "quả táo", in English always plural, "apples"
  {c} {c1}           a container, in English plural, and its English singular
  {x} {y} {s}        x + y = s, hence s - y = x
  {k} {e} {p} {q}    k x e = p, hence p / k = e; and e + k = q

parse_table in lexicon.py says how a table is written. Where there are two, the first is Vietnamese
and the second English.
"""
import re

from lexicon import (ANIMALS, COLOURS, DAYS, FRUIT, PLANTS, STATIONERY, SWEETS, THINGS, TOYS,
                     parse_table, parse_tables)

# ----- system messages: a role and up to three manners, which gives thousands of them -----

ROLES = parse_tables("""
Bạn là một trợ lý thân thiện.
Bạn là trợ lý nhỏ, luôn trả lời đúng câu hỏi.
Bạn là gia sư toán của học sinh tiểu học.
Bạn là trợ lý học tập, giúp học sinh làm toán và luyện viết câu.
Bạn là một giáo viên tiểu học kiên nhẫn.
Bạn là nano, một trợ lý biết tiếng Việt và tiếng Anh.
Bạn giúp các em nhỏ ôn bài mỗi ngày.
Bạn là trợ lý AI giỏi tính toán và đọc hiểu.
Bạn là người bạn học cùng lớp, vui vẻ và cẩn thận.
""", """
You are a helpful assistant.
You are a friendly maths tutor.
You are nano, a small assistant.
You help children with reading, writing and arithmetic.
You are a patient primary school teacher.
You are an assistant who knows Vietnamese and English.
""")
MANNERS = parse_tables("""
Hãy trả lời ngắn gọn.
Hãy đọc kỹ câu hỏi trước khi trả lời.
Trả lời bằng tiếng Việt.
Chỉ dùng thông tin có trong câu hỏi.
Nếu là phép tính thì hãy tính thật chính xác.
Viết câu đơn giản, dễ hiểu.
Không giải thích dài dòng.
Khi cần, hãy viết phép tính rồi mới viết kết quả.
Giữ nguyên tên và các con số trong câu.
Hãy kiểm tra lại kết quả trước khi trả lời.
Mỗi câu trả lời nên có một hoặc hai dòng.
""", """
Answer briefly.
Read the question carefully.
Answer in English.
Use only what the question says.
Calculate exactly.
Write simple sentences.
Keep names and numbers as they are.
Check the result before you answer.
""")

# ----- sentences of everyday life, in the words and grammar of word problems -----

SENTENCES = parse_tables("""
{A} có {x} {t} và {B} có {y} {t}.
{A} mua {x} {t} ở cửa hàng.
{A} có {s} {t}, cho {B} {y} {t} nên còn lại {x} {t}.
{A} xếp đều {p} {t} vào {k} {c}, mỗi {c} có {e} {t}.
Mỗi ngày {A} đọc {e} trang sách, sau {k} ngày đọc được {p} trang.
{A} tiết kiệm được {x} nghìn đồng trong tuần này.
{A} mua {k} {c}, mỗi {c} đựng {e} {t}.
Buổi sáng {A} đi xe đạp {e} ki-lô-mét.
{A} năm nay {e} tuổi, còn anh trai của {A} {q} tuổi.
Nhà {A} nuôi {x} con gà và {y} con vịt, tổng cộng là {s} con.
Trong vườn nhà {A} có {x} cây cam và {y} cây xoài.
Mẹ của {A} cắt {e} mét vải để may áo.
{A} đổ {e} lít nước vào thùng.
{A} làm bài tập trong {x} phút rồi đọc sách {y} phút.
Mỗi {t} giá {e} nghìn đồng nên {A} trả {p} nghìn đồng cho {k} {t}.
{A} chia đều {p} {t} cho {k} bạn, mỗi bạn được {e} {t}.
{B} có nhiều hơn {A} {y} {t}.
{A} có ít hơn {B} {y} {t}.
Sau khi ăn {k} quả táo, {A} còn lại {e} quả.
{A} hái được {s} quả xoài, bán {y} quả và giữ lại {x} quả.
Cửa hàng của cô {A} bán được {x} {t} vào buổi sáng và {y} {t} vào buổi chiều.
Bác {A} thu hoạch được {x} ki-lô-gam gạo.
{A} đi từ nhà đến trường hết {x} phút.
Quyển sách của {A} có {s} trang, {A} đã đọc {y} trang.
{A} có {s} nghìn đồng và dùng {y} nghìn đồng để mua quà cho {B}.
{A} và {B} cùng trồng được {s} cây ở công viên.
Mỗi tuần {A} tập bơi {k} giờ.
Số {t} của {B} gấp {k} lần số {t} của {A}.
{A} đã có {x} {t} và cần thêm {y} {t} nữa.
Trong rạp chiếu phim có {p} người, {A} ngồi ở hàng thứ {k}.
Trên bàn của {A} có {k} {t} mới và {e} {t} cũ.
{A} được {F} tặng {k} {t}.
Thư viện cho {A} mượn {k} quyển sách trong {e} ngày.
{A} tặng {B} một nửa số {t} của mình.
Lớp của {A} có {k} tổ, mỗi tổ có {e} bạn.
Xưởng may của chú {A} mỗi ngày may được {x} chiếc áo.
Xe của bác {A} chạy {k} giờ thì dừng lại nghỉ {x} phút.
{A} bán mỗi {t} với giá {e} nghìn đồng.
{A} gặp {B} ở {P} lúc {k} giờ.
Từ nhà {A} đến {P} là {e} km.
Hôm qua có {s} người đến {P}, trong đó có {A} và {B}.
Xe buýt của chú {A} chở {s} hành khách, đến bến có {y} người xuống.
{A} ngồi ghế số {e}, hàng thứ {k} trong nhà hát.
{A} mua {k} vé xem xiếc, vé người lớn giá {x} nghìn đồng.
Đội của {A} thắng {k} trận và được {e} điểm.
Hai đội hòa nhau vì {A} và {B} cùng ghi được {k} điểm.
Nhóm của {A} có {k} bạn nam và {e} bạn nữ.
Xe tải của bác {A} chở {k} tấn xi măng, đi {e} chuyến mới xong.
Con lợn nhà {A} nặng {x} kg.
{A} vẽ một hình chữ nhật có chiều dài {q} cm và chiều rộng {e} cm.
Mảnh đất của bác {A} rộng {p} mét vuông.
{A} đo chu vi và diện tích của sân chơi hình vuông.
{A} chạy {k} vòng quanh hồ mỗi buổi sáng.
Vòi nước nhà {A} chảy được {e} lít mỗi phút, {k} phút thì đầy bể.
{A} để dành {x} nghìn đồng để mua một đôi giày.
Bố của {A} thuê một chiếc xe máy trong {k} ngày.
{A} cắm vào mỗi lọ {k} bông hồng tươi.
{A} thắp {e} cây nến trên bánh kem.
Cả nhóm của {A} góp {s} nghìn đồng mua một lẵng hoa tặng cô giáo.
{A} phải đi thêm {k} km nữa mới đến bến xe.
Lúc đầu {A} có {s} {t} nhưng bị mất {y} {t}.
{A} còn thiếu {y} nghìn đồng để đủ tiền mua cái mũ mới.
Trong {c} của {A} chưa có {t} nào.
Phòng của {A} ở tầng {k}, có {e} cái đèn lồng.
{A} gấp {k} ngôi sao giấy và {e} con thuyền giấy.
{A} cắt cuộn dây {x} mét để buộc {k} bó hoa.
Hàng rào quanh vườn của ông {A} cần {x} cái cọc tre.
Cô {A} bán mỗi bó rau {e} nghìn đồng và lãi {k} nghìn đồng.
{A} đang xếp {k} cuốn sách dày lên kệ.
Chuyến tàu hỏa của {A} chạy {k} giờ thì đến nơi.
Ngoài {x} con bò, nhà {A} cũng nuôi {y} con dê.
Thời gian {A} nấu cơm là {x} phút.
Nhà bác {A} thu được {k} tấn thóc và {e} tấn ngô ở thửa ruộng đó.
{A} rót {k} cốc nước và bày {e} cái đĩa ra bàn.
Cô thợ may dùng {x} mét vải may rèm và đính {k} cái cúc lên váy của {A}.
Món quà {A} muốn tặng {B} là một con gấu bông giá {x} nghìn đồng.
{A} trồng bí, dưa hấu và rau trong vườn.
Hôm nay lớp {A} có {k} bạn vắng, ngày kia mới đủ.
{A} bỏ {e} viên bi vào lọ thứ nhất và {q} viên bi vào lọ thứ hai.
Đèn của {A} hỏng nên {A} mua cái khác giá {x} nghìn đồng.
{A} đi tham quan sở thú cùng {x} trẻ em trong xóm.
{A} xem ca nhạc ở nhà hát, còn {B} chơi cờ vua với bố.
Quán của cô {A} phục vụ {s} khách, gồm {x} người lớn và {y} trẻ em.
{A} và {B} chơi trò ném bóng, mỗi bạn ném {k} lần.
Bể nước nhà {A} chứa {s} lít, đã bơm được {x} lít.
{A} nhặt được {x} vỏ sò ở biển và chia cho {B} {k} cái.
{A} nhập {x} kg gạo, mỗi bao nặng {e} kg.
{A} có {k} bông hoa màu đỏ và {e} bông hoa màu vàng.
Cặp sách của {A} nặng {k} kg, trong đó có bút chì, vở và thước.
Số học sinh dự thi của trường {A} là {s} bạn.
Trên đường về quê ngoại, {A} đếm được {x} cái cây khô héo.
{A} muốn mua thảm và chăn cho phòng ngủ.
Hai anh em {A} và {B} có tổng số tiền là {s} nghìn đồng.
""", """
{A} has {x} {t} and {B} has {y} {t}.
{A} bought {x} {t} at the shop.
{A} had {s} {t}, gave {y} to {B} and has {x} left.
{A} put {p} {t} into {k} {c}, {e} in each {c1}.
{A} reads {e} pages a day, that is {p} pages in {k} days.
{A} saved {x} thousand dong this week.
{A} is {e} years old and {B} is {q}.
{A} keeps {x} chickens and {y} ducks.
{A} rode {e} kilometres by bicycle.
{A} did homework for {x} minutes and then read for {y} minutes.
{A} shared {p} {t} among {k} friends, and each got {e}.
{B} has {y} more {t} than {A}.
{A} sold {x} {t} in the morning and {y} in the afternoon.
{A}'s {F} gave {A} {k} {t}.
{A} still needs {y} {t}.
{A} met {B} at the {P} at {k} o'clock.
It is {e} kilometres from {A}'s house to the {P}.
{A} drew a rectangle {q} cm long and {e} cm wide.
{A}'s team won {k} games and scored {e} points.
The bus that {A} takes has {s} seats.
{A} paid {p} dollars for {k} tickets.
""")

# ----- problems of one step: question | short answer | sentence with the equation -----

PROBLEMS = parse_tables("""
{A} có {x} {t}, {F} cho thêm {y} {t}. {A} có tất cả mấy {t}? | {s} {t} | {A} có {x} + {y} = {s} {t}.
{A} có {s} {t}, cho bạn {y} {t}. {A} còn mấy {t}? | {x} {t} | {A} còn {s} - {y} = {x} {t}.
Một {c} đựng {e} {t}, {k} {c} đựng mấy {t}? | {p} {t} | {k} {c} đựng {k} x {e} = {p} {t}.
Chia đều {p} {t} cho {k} bạn, mỗi bạn được mấy {t}? | {e} {t} | Mỗi bạn được {p} / {k} = {e} {t}.
{A} có {x} {t}, {B} hơn {A} {y} {t}. Vậy {B} có mấy {t}? | {s} {t} | {B} có {x} + {y} = {s} {t}.
{B} có {s} {t}, {A} kém {B} {y} {t}. Vậy {A} có mấy {t}? | {x} {t} | {A} có {s} - {y} = {x} {t}.
Sân nhà {A} có {x} con gà và {y} con vịt. Gà và vịt có mấy con? | {s} con |
    Gà và vịt có {x} + {y} = {s} con.
{A} lên {e} tuổi. {k} năm nữa {A} mấy tuổi? | {q} tuổi | {A} sẽ {e} + {k} = {q} tuổi.
Giá một {t} là {e} nghìn đồng, thế {k} {t} giá bao nhiêu? | {p} nghìn đồng |
    {k} {t} giá {k} x {e} = {p} nghìn đồng.
Truyện có {s} trang, {A} đọc {y} trang rồi. Còn mấy trang? | {x} trang | Còn {s} - {y} = {x} trang.
Mỗi tối {A} học {e} từ mới, {k} tối học được mấy từ? | {p} từ | {A} học được {k} x {e} = {p} từ.
Một giờ xe chạy {e}0 km, {k} giờ chạy được bao xa? | {p}0 km | Xe chạy được {k} x {e}0 = {p}0 km.
Xếp đều {p} {t} vào {k} {c}, mỗi {c} có mấy {t}? | {e} {t} | Mỗi {c} có {p} / {k} = {e} {t}.
{A} cầm {s} nghìn đồng, tiêu {y} nghìn đồng thì còn mấy? | {x} nghìn đồng |
    {A} còn {s} - {y} = {x} nghìn đồng.
Sợi dây {s} mét, cắt đi {y} mét thì còn mấy mét? | {x} mét | Sợi dây còn {s} - {y} = {x} mét.
Can to có {x} lít, can nhỏ có {y} lít. Hai can có mấy lít? | {s} lít |
    Hai can có {x} + {y} = {s} lít.
{A} có {e} {t}, {B} có gấp {k} lần như thế. {B} có mấy {t}? | {p} {t} | {B} có {k} x {e} = {p} {t}.
Trên cành có {s} con chim, {y} con bay đi, còn mấy con? | {x} con chim |
    Trên cành còn {s} - {y} = {x} con chim.
Một tuần {A} bơi {k} buổi, {e} tuần bơi mấy buổi? | {p} buổi | {A} bơi {e} x {k} = {p} buổi.
Xe buýt có {x} khách, thêm {y} khách lên. Xe có mấy khách? | {s} khách |
    Xe buýt có {x} + {y} = {s} khách.
""", """
{A} has {x} {t} and gets {y} more. How many {t} now? | {s} {t} | {A} has {x} + {y} = {s} {t}.
{A} had {s} {t} and gave away {y}. How many are left? | {x} {t} | {A} has {s} - {y} = {x} {t} left.
One {c1} holds {e} {t}. And {k} {c}? | {p} {t} | {k} {c} hold {k} x {e} = {p} {t}.
Share {p} {t} among {k} friends. How many for each? | {e} {t} |
    Each friend gets {p} / {k} = {e} {t}.
{A} is {e}. How old is {A} in {k} years? | {q} years old | {A} will be {e} + {k} = {q} years old.
A book has {s} pages, {A} has read {y}. How many are left? | {x} pages |
    {s} - {y} = {x} pages are left.
{k} tickets at {e} dollars each cost how much? | {p} dollars |
    {k} tickets cost {k} x {e} = {p} dollars.
""")

# ----- facts: who did what -----

STUFF = parse_table("""
mét vải | metre of cloth | metres of cloth
lít nước | litre of water | litres of water
ki-lô-gam gạo | kilogram of rice | kilograms of rice
lít sữa | litre of milk | litres of milk
""")
GIFTS = FRUIT + STATIONERY + TOYS + SWEETS
BOOKS = [STATIONERY[2], STATIONERY[6]]
FOOD = FRUIT[:8] + SWEETS[:2]
FLOWERS = [PLANTS[0], PLANTS[5]]
PAGES = [("trang sách", "page", "pages")]
METRES = [("mét", "metre", "metres")]
KILOMETRES = [("ki-lô-mét", "kilometre", "kilometres")]
MINUTES = [("phút", "minute", "minutes")]
MONEY = [("nghìn đồng", "thousand dong", "thousand dong")]

# A verb: in Vietnamese, in English, its infinitive, the largest number, the things it is done to.
STATES = [
    ("có", "has", "have", 99, GIFTS),
    ("nuôi", "keeps", "keep", 60, ANIMALS),
    ("cần", "needs", "need", 40, GIFTS + STUFF),
]
ACTS = [
    ("mua", "bought", "buy", 50, GIFTS + STUFF),
    ("bán", "sold", "sell", 99, FRUIT + SWEETS + STUFF),
    ("hái", "picked", "pick", 90, FRUIT + FLOWERS),
    ("ăn", "ate", "eat", 9, FOOD),
    ("trồng", "planted", "plant", 40, PLANTS[:4]),
    ("đếm được", "counted", "count", 99, THINGS),
    ("vẽ", "drew", "draw", 20, ANIMALS + FLOWERS),
    ("làm mất", "lost", "lose", 9, TOYS + STATIONERY),
    ("mang theo", "brought", "bring", 20, GIFTS),
    ("nhận được", "received", "receive", 50, GIFTS),
    ("dùng", "used", "use", 30, STUFF),
    ("đọc", "read", "read", 9, BOOKS),
    ("đọc", "read", "read", 200, PAGES),
    ("đi bộ", "walked", "walk", 900, METRES),
    ("đi được", "travelled", "travel", 99, KILOMETRES),
    ("học bài", "studied", "study", 60, MINUTES),
    ("tiết kiệm", "saved", "save", 99, MONEY),
    ("tiêu", "spent", "spend", 99, MONEY),
]
WHEN = parse_table("""
Hôm qua | Yesterday
Sáng nay | This morning
Tối qua | Last night
Tuần trước | Last week
Tháng trước | Last month
Thứ hai | On Monday
Thứ bảy | On Saturday
Chủ nhật | On Sunday
""")
ASIDES = parse_tables("""
Hôm nay trời đẹp.
Trời hôm nay mưa to.
Các bạn học cùng một lớp.
Các bạn rất vui.
Đây là câu chuyện của mấy bạn nhỏ.
""", """
The weather is fine.
They are good friends.
They are in the same class.
Everybody is happy.
""")

# ----- the world -----

DICTIONARY = """
học sinh=student, nhà=house, nước=water, sữa=milk, gạo=rice, tiền=money, tuổi=age, mùa hè=summer,
mùa đông=winter, mặt trời=sun, mặt trăng=moon, khu vườn=garden, nông trại=farm, chợ=market,
công viên=park, xe đạp=bicycle, xe buýt=bus, xe tải=truck, tàu hỏa=train, thuyền=boat, mẹ=mother,
bố=father, ông=grandfather, bà=grandmother, trẻ em=children, người lớn=adult, hành khách=passenger,
thợ=worker, mua=buy, bán=sell, ăn=eat, đọc=read, chạy=run, nấu=cook, chở=carry, đổ=pour, cắt=cut,
xếp=arrange, thuê=rent, thắng=win, nhặt=pick up, góp tiền=chip in, để dành=save, cộng=plus,
trừ=minus, nhân=times, chia=divide, tổng=sum, một nửa=half, gấp đôi=double, còn lại=remaining,
mỗi ngày=every day, tất cả=all, cảm ơn=thank you, xin chào=hello, tạm biệt=goodbye, ghế=chair,
bàn=table, đèn=lamp, nến=candle, vé=ticket, đội=team, nhóm=group, trận đấu=match, điểm=point,
chuyến đi=trip, hàng=row, vòng=lap, cuộn dây=roll of string, bó hoa=bunch of flowers, bình hoa=vase,
vòi nước=tap, bể nước=water tank, cái hồ=lake, biển=sea, con sông=river, đất=land, ruộng=field,
ngô=corn, rau=vegetable, dưa hấu=watermelon, bí ngô=pumpkin, đậu=bean, kem=ice cream, bánh mì=bread,
cái mũ=hat, áo=shirt, váy=dress, giày=shoe, rèm=curtain, chăn=blanket, gấu bông=teddy bear,
cờ vua=chess, đàn ghi-ta=guitar, chiều dài=length, chiều rộng=width, diện tích=area,
chu vi=perimeter, hình vuông=square, hình chữ nhật=rectangle, hàng rào=fence, tầng=floor,
phòng=room, nhà hát=theatre, vườn thú=zoo, thị trấn=town, thời gian=time, quãng đường=distance,
tốc độ=speed, giá=price, tiền lãi=profit, quà=present, cái đĩa=plate, cái cốc=cup, nồi=pot,
lồng chim=bird cage, cây tre=bamboo, con hạc=crane, ngôi sao=star, đồng xu=coin,
quả bóng bay=balloon, sợi dây=string, nhiều hơn=more, ít hơn=less, lúc đầu=at first,
sau đó=after that, cuối cùng=finally, buổi sáng=morning, buổi chiều=afternoon, hôm nay=today,
ngày mai=tomorrow
"""
WORDS = COLOURS + DAYS + [tuple(entry.split("=")) for entry in re.split(r",\s", DICTIONARY.strip())]
# Vietnamese | Vietnamese | English | English
OPPOSITES = parse_table("""
to | nhỏ | big | small
dài | ngắn | long | short
nhiều | ít | many | few
nhanh | chậm | fast | slow
nóng | lạnh | hot | cold
mới | cũ | new | old
nặng | nhẹ | heavy | light
trên | dưới | above | below
trước | sau | before | after
mở | đóng | open | closed
đầy | vơi | full | empty
mua | bán | buy | sell
đắt | rẻ | expensive | cheap
sáng | tối | bright | dark
cao | thấp | high | low
đúng | sai | right | wrong
rộng | hẹp | wide | narrow
thắng | thua | win | lose
""")
CAPITALS = parse_table("""
Việt Nam | Hà Nội | Vietnam | Hanoi
Lào | Viêng Chăn | Laos | Vientiane
Thái Lan | Băng Cốc | Thailand | Bangkok
Nhật Bản | Tokyo | Japan | Tokyo
Trung Quốc | Bắc Kinh | China | Beijing
Hàn Quốc | Seoul | South Korea | Seoul
Pháp | Paris | France | Paris
Đức | Berlin | Germany | Berlin
Nga | Mát-xcơ-va | Russia | Moscow
Ý | Roma | Italy | Rome
nước Anh | Luân Đôn | England | London
Ai Cập | Cairo | Egypt | Cairo
""")
UNITS = [       # how many parts a whole has
    (7, ("tuần", "week", "weeks"), ("ngày", "days")),
    (60, ("giờ", "hour", "hours"), ("phút", "minutes")),
    (60, ("phút", "minute", "minutes"), ("giây", "seconds")),
    (12, ("năm", "year", "years"), ("tháng", "months")),
    (24, ("ngày", "day", "days"), ("giờ", "hours")),
    (12, ("tá", "dozen", "dozen"), ("cái", "pieces")),
    (100, ("mét", "metre", "metres"), ("cm", "cm")),
    (1000, ("km", "km", "km"), ("mét", "metres")),
    (1000, ("kg", "kg", "kg"), ("gam", "grams")),
    (1000, ("tấn", "ton", "tons"), ("kg", "kg")),
]
FACTS = parse_tables("""
Con gà có mấy chân? | 2 chân
Con bò có mấy chân? | 4 chân
Con cá sống ở đâu? | Con cá sống dưới nước.
Con vật nào đẻ trứng, con gà hay con bò? | con gà
Con thỏ thích ăn gì? | cà rốt
Con gì kêu gâu gâu? | con chó
Một năm có mấy mùa? | 4 mùa
Một năm có những mùa nào? | xuân, hạ, thu, đông
Mùa nào nóng nhất? | mùa hè
Mùa nào lạnh nhất? | mùa đông
Một tuần có mấy ngày? | 7 ngày
Một tá là bao nhiêu? | 12
Một đôi giày có mấy chiếc? | 2 chiếc
Hình tam giác có mấy cạnh? | 3 cạnh
Hình vuông có mấy cạnh? | 4 cạnh
Bàn tay có mấy ngón? | 5 ngón
Quả chuối chín màu gì? | màu vàng
Lá cây màu gì? | màu xanh
Mặt trời mọc ở hướng nào? | hướng đông
Mặt trời lặn ở hướng nào? | hướng tây
Một nghìn có mấy chữ số 0? | 3 chữ số 0
Số nào nhỏ nhất có hai chữ số? | 10
Số lớn nhất có hai chữ số là số nào? | 99
50% là bao nhiêu? | một nửa
25% là bao nhiêu? | một phần tư
Ta mượn sách ở đâu? | ở thư viện
Ta mua bánh mì ở đâu? | ở tiệm bánh
Ta xem phim ở đâu? | ở rạp chiếu phim
Ta đón xe buýt ở đâu? | ở bến xe
Nước đóng băng thành gì? | thành nước đá
Tàu hỏa và xe đạp, cái nào nhanh hơn? | tàu hỏa
Con bò và con thỏ, con nào nặng hơn? | con bò
""", """
How many legs does a chicken have? | 2 legs
How many legs does a cow have? | 4 legs
Where do fish live? | in water
Which season is the hottest? | summer
How many seasons are there? | 4 seasons
How many sides does a triangle have? | 3 sides
How many is a dozen? | 12
What colour is a ripe banana? | yellow
Where do we borrow books? | at the library
Which animal says moo? | the cow
How many fingers are on one hand? | 5 fingers
Where does the sun rise? | in the east
""")
TALK = parse_tables("""
Xin chào! | Xin chào! Mình có thể giúp gì cho bạn?
Chào bạn | Chào bạn! Bạn cần giúp gì?
Bạn là ai? | Tôi là nano, một trợ lý nhỏ.
Bạn tên là gì? | Tôi tên là nano.
Bạn làm được gì? | Tôi biết tính toán, đọc hiểu, viết câu và dịch.
Cảm ơn bạn! | Không có gì!
Cảm ơn nhé | Rất vui được giúp bạn.
Bạn giúp mình học toán nhé? | Được chứ, bạn gửi bài đi.
Tạm biệt! | Tạm biệt, hẹn gặp lại!
Bạn có khỏe không? | Mình khỏe, cảm ơn bạn.
Mình làm bài đúng rồi! | Giỏi lắm! Bạn cố gắng tiếp nhé.
Bạn biết tiếng Anh không? | Có, tôi biết một chút tiếng Anh.
Chúc ngủ ngon | Chúc bạn ngủ ngon!
""", """
Hello! | Hello! How can I help you?
Hi | Hi! What can I do for you?
Who are you? | I am nano, a small assistant.
What can you do? | I can calculate, read, write sentences and translate.
Thank you! | You are welcome!
Goodbye | Goodbye!
Can you help me with maths? | Of course, send me your question.
How are you? | I am fine, thank you.
""")
